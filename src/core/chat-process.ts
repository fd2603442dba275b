/** What the chat process and its parent tell each other, over IPC. */
import type { AdapterScales, ChatModelInfo, ChatReply, ChatToken, ChatTurn, ReplyOptions } from "./chat.ts";
import type { DeviceName } from "./env.ts";

/** A model that may be chatted with. */
export interface ChatModelSpec {
  readonly id: string;
  readonly label: string;
  readonly model: string;
  readonly adapter: string | null;
  /** Of a DualLoRA adapter; absent: as in training. */
  readonly scales?: AdapterScales | null;
}

/** How the chat process computes. */
export interface ChatEngineOptions {
  readonly device: DeviceName;
  readonly threads: number | null;
  readonly dtype: "float32" | "bfloat16";
  /** Longest conversation in tokens, where the model's own context is not shorter. */
  readonly max_length: number;
}

/** Parent to chat process. */
export type ChatCommand =
  | { readonly type: "start"; readonly options: ChatEngineOptions }
  | {
      readonly type: "open";
      readonly call: number;
      readonly spec: ChatModelSpec;
      /** Models that are not to be closed to make room. */
      readonly keep: readonly string[];
    }
  | {
      readonly type: "reply";
      readonly call: number;
      readonly model: string;
      readonly messages: readonly ChatTurn[];
      readonly options: ReplyOptions;
    }
  /** Ends the reply of that call as it is. */
  | { readonly type: "stop"; readonly call: number };

/** Chat process to parent, about a call. */
export type ChatEvent =
  | {
      readonly type: "opened";
      readonly call: number;
      readonly info: ChatModelInfo;
      /** Ids of the models that had to make room. */
      readonly closed: readonly string[];
    }
  | { readonly type: "tokens"; readonly call: number; readonly tokens: readonly ChatToken[] }
  | { readonly type: "replied"; readonly call: number; readonly reply: ChatReply }
  /** `mistake`: of whoever asked, not of this program. */
  | { readonly type: "failed"; readonly call: number; readonly message: string; readonly mistake: boolean };
