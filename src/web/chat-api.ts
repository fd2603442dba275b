/**
 * What the chat page and the server say to each other; types alone. A model has an id of the server's: no path of a file
 * goes either way as a parameter. An answer other than 2xx is an `ApiError`.
 *
 *   GET  /api/chat/models                 ChatModels
 *   POST /api/chat/open    OpenRequest    ChatModelInfo
 *   POST /api/chat/reply   ReplyRequest   server-sent events: see ReplyEvents
 *   POST /api/chat/stop    StopRequest    StopAnswer
 */
import type { ChatModelInfo, ChatReply, ChatToken, ChatTurn, ReplyOptions } from "../core/chat.ts";

export interface ChatModelEntry {
  readonly id: string;
  /** The command line's name of it, or the checkpoint's. */
  readonly label: string;
  /** Id and name of its run; null: named on the command line. */
  readonly run: { readonly id: string; readonly name: string } | null;
  /** The model that the run began with. */
  readonly base: boolean;
  /** null while it is not open. */
  readonly open: ChatModelInfo | null;
}

export interface ChatModels {
  readonly models: readonly ChatModelEntry[];
  /** Ids of those that the page shows first. */
  readonly selected: readonly string[];
  /** They are opened when the page is. */
  readonly autoload: boolean;
  readonly defaults: ReplyOptions & { readonly system: string | null };
}

export interface OpenRequest {
  readonly id: string;
  /** Ids of models that are shown beside it: not to be closed to make room. */
  readonly keep: readonly string[];
}

export interface ReplyRequest {
  readonly model: string;
  readonly keep: readonly string[];
  readonly messages: readonly ChatTurn[];
  readonly options: ReplyOptions;
}

export interface StopRequest {
  readonly call: string;
}

export interface StopAnswer {
  /** False: it had ended. */
  readonly stopped: boolean;
}

/** Events of a reply by name; the last one is `done` or `failed`. A reader that goes away stops the reply. */
export interface ReplyEvents {
  /** First of all: what a stop names. */
  readonly begin: { readonly call: string };
  /** Its model is ready. */
  readonly open: ChatModelInfo;
  readonly tokens: readonly ChatToken[];
  readonly done: ChatReply;
  readonly failed: { readonly error: string };
}
