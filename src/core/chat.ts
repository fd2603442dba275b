/** What the chat engine, the terminal, the web server and the page tell each other: plain data. */
import type { Finish } from "./records.ts";

export interface ChatTurn {
  readonly role: "system" | "user" | "assistant";
  /** Of an assistant: the whole reply, thinking included; templates drop what they do not show again. */
  readonly content: string;
}

/** Under the names of the flags. */
export interface ChatSampling {
  readonly temperature: number;
  readonly top_p: number;
  readonly top_k: number;
  readonly min_p: number;
  readonly max_new_tokens: number;
  readonly seed: number;
}

/** Weights of the two adapters of a DualLoRA model. */
export interface AdapterScales {
  readonly retain: number;
  readonly forget: number;
}

export interface ReplyOptions extends ChatSampling {
  /** For templates that know `enable_thinking`; null leaves it to them. */
  readonly thinking: boolean | null;
  /** How many of the likeliest tokens are told beside each drawn one. */
  readonly alternatives: number;
  /** Counts replies to the same messages: another number, another draw. */
  readonly draw: number;
  /** Of a DualLoRA model; null leaves them as they are. */
  readonly scales: AdapterScales | null;
}

/** An open model. */
export interface ChatModelInfo {
  readonly id: string;
  readonly label: string;
  readonly architecture: string;
  readonly parameters: number;
  readonly device: string;
  /** Longest conversation in tokens. */
  readonly context: number;
  /** Without a chat template messages are joined as plain text. */
  readonly template: boolean;
  /** Its template knows `enable_thinking`. */
  readonly thinking: boolean;
  /** Of a DualLoRA model. */
  readonly scales: AdapterScales | null;
  readonly bytes: number;
  readonly notes: readonly string[];
}

/** A token of a reply as it is shown. */
export interface ChatToken {
  /** Whole characters; empty while one is incomplete, and for tags and the ending token. */
  readonly text: string;
  readonly thinking: boolean;
  /** Natural logarithm, at the sampling temperature; null for text that was held back to the end. */
  readonly logprob: number | null;
  readonly alternatives: readonly { readonly text: string; readonly logprob: number }[];
}

export interface ChatReply {
  /** What goes into the conversation. */
  readonly content: string;
  readonly thinking: string;
  readonly answer: string;
  readonly finish: Finish;
  /** Tokens of the conversation before the reply, and how many of them were encoded for it. */
  readonly promptTokens: number;
  readonly encodedTokens: number;
  readonly reusedTokens: number;
  /** Tokens of the reply, the ending one included. */
  readonly tokens: number;
  /** Until the first token, and in all. */
  readonly promptSeconds: number;
  readonly seconds: number;
  /** Sum of the reply's log-probabilities. */
  readonly logprob: number;
}
