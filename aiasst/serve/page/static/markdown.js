// Markdown, as models write it → elements. Only text nodes and known elements are made, so nothing in an answer can act.

const make = (name, ...children) => {
  const element = document.createElement(name);
  element.append(...children);
  return element;
};

const INLINE = /(`+)([\s\S]+?)\1|\*\*([^\s*](?:[\s\S]*?[^\s])?)\*\*|__([^\s_](?:[\s\S]*?[^\s])?)__|~~([\s\S]+?)~~|\*([^\s*](?:[^*]*?[^\s*])?)\*|(?<![\w])_([^\s_](?:[^_]*?[^\s_])?)_(?![\w])|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)|(https?:\/\/[^\s<>()"']*[^\s<>()"'.,;:!?])/g;

function link(target, label) {
  const element = make("a", label);
  element.href = target;
  element.rel = "noopener noreferrer";
  element.target = "_blank";
  return element;
}

function inline(text, depth = 0) {
  if (depth > 4) return [text];
  const found = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > end) found.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    const [, , code, strong, strong2, del, em, em2, label, target, bare] = match;
    if (code !== undefined) found.push(make("code", code.trim() || code));
    else if (strong ?? strong2) found.push(make("strong", ...inline(strong ?? strong2, depth + 1)));
    else if (del) found.push(make("del", ...inline(del, depth + 1)));
    else if (em ?? em2) found.push(make("em", ...inline(em ?? em2, depth + 1)));
    else if (target) found.push(link(target, label));
    else found.push(link(bare, bare));
  }
  if (end < text.length) found.push(text.slice(end));
  return found;
}

function lines(text) {
  const found = [];
  text.split("\n").forEach((line, index) => { if (index) found.push(make("br")); found.push(...inline(line)); });
  return found;
}

function codeBlock(language, text) {
  const button = make("button", "Copy");
  button.type = "button";
  button.className = "quiet copy-code";
  const pre = make("pre", make("code", text));
  pre.tabIndex = 0;
  const figure = make("figure", make("figcaption", language || "text", button), pre);
  figure.className = "code";
  return figure;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const CELLS = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
const RULE = /^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*$/;

function list(rows) {
  const indent = rows[0].indent;
  const ordered = /\d/.test(rows[0].mark);
  const element = make(ordered ? "ol" : "ul");
  if (ordered) element.start = Number.parseInt(rows[0].mark, 10);
  for (let at = 0; at < rows.length;) {
    const item = make("li", ...inline(rows[at].text));
    const inner = [];
    for (at += 1; at < rows.length && rows[at].indent > indent; at += 1) inner.push(rows[at]);
    if (inner.length) item.append(list(inner));
    element.append(item);
  }
  return element;
}

function table(rows) {
  const head = make("tr", ...CELLS(rows[0]).map((cell) => make("th", ...inline(cell))));
  const body = rows.slice(2).map((row) => make("tr", ...CELLS(row).map((cell) => make("td", ...inline(cell)))));
  const wrap = make("div", make("table", make("thead", head), make("tbody", ...body)));
  wrap.className = "table";
  wrap.tabIndex = 0;
  return wrap;
}

/** The elements of a text, a block each. */
export function render(text) {
  const rows = text.replaceAll("\r\n", "\n").split("\n");
  const found = [];
  let paragraph = [];
  const flush = () => { if (paragraph.length) found.push(make("p", ...lines(paragraph.join("\n")))); paragraph = []; };
  for (let at = 0; at < rows.length; at += 1) {
    const row = rows[at];
    const fence = FENCE.exec(row);
    if (fence) {
      flush();
      const inside = [];
      const closed = (line) => line.trim().startsWith(fence[1]) && line.trim().replaceAll(fence[1][0], "") === "";
      for (at += 1; at < rows.length && !closed(rows[at]); at += 1) inside.push(rows[at]);
      found.push(codeBlock(fence[2], inside.join("\n")));
      continue;
    }
    const heading = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/.exec(row);
    if (heading) { flush(); found.push(make(`h${Math.min(6, heading[1].length + 2)}`, ...inline(heading[2]))); continue; }
    if (/^ {0,3}([-*_])(\s*\1){2,}\s*$/.test(row)) { flush(); found.push(make("hr")); continue; }
    if (row.includes("|") && RULE.test(rows[at + 1] ?? "") && rows[at + 1].includes("|")) {
      flush();
      const inside = [row];
      for (at += 1; at < rows.length && rows[at].includes("|"); at += 1) inside.push(rows[at]);
      at -= 1;
      found.push(table(inside));
      continue;
    }
    if (/^\s*>/.test(row)) {
      flush();
      const inside = [];
      for (; at < rows.length && /^\s*>/.test(rows[at]); at += 1) inside.push(rows[at].replace(/^\s*> ?/, ""));
      at -= 1;
      found.push(make("blockquote", ...lines(inside.join("\n"))));
      continue;
    }
    if (ITEM.test(row)) {
      flush();
      const inside = [];
      for (; at < rows.length; at += 1) {
        const item = ITEM.exec(rows[at]);
        if (item) inside.push({ indent: item[1].length, mark: item[2], text: item[3] });
        else if (rows[at].trim() && /^\s{2,}/.test(rows[at])) inside.at(-1).text += ` ${rows[at].trim()}`;
        else break;
      }
      at -= 1;
      found.push(list(inside));
      continue;
    }
    if (row.trim()) paragraph.push(row); else flush();
  }
  flush();
  return found;
}
