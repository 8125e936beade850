// Text files into the context: read in the browser, never sent anywhere but in the message. Knows no page.

const MOST_BYTES = 1_000_000;
export const CHARACTERS_A_TOKEN = 3.5; // of English text, roughly; only for words about what will hardly fit

export const size = (bytes) => (bytes < 1000 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

/** {name, text}; throws an Error in words where the file is no text or too long. */
export async function readText(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} has ${size(file.size)}; at most ${size(MOST_BYTES)} can be read.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text;
  try { text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); } catch { throw new Error(`${file.name} is no UTF-8 text.`); }
  if (text.includes("\u0000")) throw new Error(`${file.name} is no text.`);
  return { name: file.name, text };
}

/** The message as the model reads it. A fence longer than any in the file keeps it apart from the question. */
export function withFiles(message) {
  const told = (message.files ?? []).map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map((run) => run[0].length));
    const fence = "`".repeat(longest + 1);
    return `File ${name}:\n${fence}\n${text}\n${fence}\n\n`;
  });
  return told.join("") + message.content;
}
