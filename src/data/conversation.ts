/** Conversations as text: HH transcripts, chat templates, and what both need around an answer. */
import type { ChatMessage } from "../io/template.ts";
import { hasChatTemplate, renderChat } from "../io/template.ts";
import type { Tokenizer } from "../io/tokenizer.ts";

/** A message whose content is text. */
export interface Turn extends ChatMessage {
  readonly content: string;
}

const MARKERS = { user: "Human:", assistant: "Assistant:" } as const;
type Speaker = keyof typeof MARKERS;

/**
 * The turns of an HH transcript, "\n\nHuman: …\n\nAssistant: …", or null if the text is none. Roles alternate: a
 * marker counts only at the start of a paragraph and only where the other one speaks, so "Human:" may occur in a turn.
 */
export function parseTranscript(text: string): Turn[] | null {
  const start = text.trimStart();
  if (!start.startsWith(MARKERS.user)) return null;
  const turns: Turn[] = [];
  let speaker: Speaker = "user";
  let rest = start.slice(MARKERS.user.length);
  for (;;) {
    const next: Speaker = speaker === "user" ? "assistant" : "user";
    const end = rest.indexOf(`\n\n${MARKERS[next]}`);
    turns.push({ role: speaker, content: (end < 0 ? rest : rest.slice(0, end)).trim() });
    if (end < 0) return turns;
    rest = rest.slice(end + 2 + MARKERS[next].length);
    speaker = next;
  }
}

/** The transcript of a conversation; with `open` it ends where the assistant is to speak. */
export function transcriptText(turns: readonly Turn[], open: boolean): string {
  const names: Readonly<Record<string, string>> = { ...MARKERS, system: "System:" };
  const said = turns.map(({ role, content }) => `\n\n${names[role] ?? `${role}:`} ${content}`);
  return said.join("") + (open ? `\n\n${MARKERS.assistant}` : "");
}

/** Formatted text without what a model thought aloud: `<think>…</think>` and the space behind it. */
export function stripThinking(text: string): string {
  return text.replace(/<think>[\s\S]*?<\/think>\s*/g, "");
}

/** Ends a text with EOS as a sampled completion does: it is added where missing, and nothing stays behind it. */
export function endedText(text: string, tokenizer: Tokenizer): string {
  const trimmed = text.trimEnd();
  const ends = tokenizer.eosIds.map((id) => tokenizer.decode([id]));
  if (ends.some((end) => trimmed.endsWith(end))) return trimmed;
  return text + (ends[0] ?? "");
}

/**
 * A conversation by the model's chat template, or as a transcript where the tokenizer has none, without thoughts.
 * `open`: the assistant speaks next. Otherwise it ends with EOS.
 */
export function conversationText(turns: readonly Turn[], tokenizer: Tokenizer, open: boolean): string {
  const text = hasChatTemplate(tokenizer)
    ? renderChat(tokenizer, turns, { addGenerationPrompt: open })
    : transcriptText(turns, open);
  const said = stripThinking(text);
  return open ? said : endedText(said, tokenizer);
}
