// Conversations and settings in this browser. Knows no page and no service.

const CONVERSATIONS = "aiasst.conversations", SETTINGS = "aiasst.settings", CURRENT = "aiasst.current";

const read = (name, fallback) => {
  try { return JSON.parse(localStorage.getItem(name)) ?? fallback; } catch { return fallback; }
};
const write = (name, value) => {
  try { localStorage.setItem(name, JSON.stringify(value)); return true; } catch { return false; }
};

const sound = (one) => one && typeof one.id === "string" && Array.isArray(one.messages);

export const conversations = {
  all: () => { const found = read(CONVERSATIONS, []); return Array.isArray(found) ? found.filter(sound) : []; },
  /** False where the browser has no room. */
  keep(conversation) {
    const others = this.all().filter((one) => one.id !== conversation.id);
    return write(CONVERSATIONS, conversation.messages.length ? [conversation, ...others] : others);
  },
  remove(id) { write(CONVERSATIONS, this.all().filter((one) => one.id !== id)); },
  fresh: () => ({ id: `${Date.now()}-${Math.random().toString(36).slice(2, 8)}`, title: "", model: "", messages: [] }),
};

export const current = { get: () => read(CURRENT, ""), set: (id) => write(CURRENT, id) };
export const settings = { get: () => read(SETTINGS, {}), set: (value) => write(SETTINGS, value) };

/** A conversation as text to read. */
export function asMarkdown(conversation) {
  const names = { user: "You", assistant: "Assistant" };
  const told = conversation.messages.map((message) => {
    const files = (message.files ?? []).map((file) => `*${file.name}*\n\n`).join("");
    return `## ${names[message.role]}\n\n${files}${message.content}`;
  });
  return `# ${conversation.title || "Conversation"}\n\n${told.join("\n\n")}\n`;
}

export function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
