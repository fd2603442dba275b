/** A conversation with one model, or with several side by side that are asked the same. */
import type { ChatReply, ChatSampling, ChatToken, ChatTurn } from "../../core/chat.ts";
import { UsageError } from "../../core/errors.ts";
import type { ChatModel } from "./model.ts";

export interface ConversationSettings extends ChatSampling {
  system: string | null;
  thinking: boolean | null;
  temperature: number;
  top_p: number;
  top_k: number;
  min_p: number;
  max_new_tokens: number;
  seed: number;
}

/** A message and what each model replied, in the order of the columns. */
export interface Exchange {
  readonly message: string;
  readonly replies: readonly (ChatReply & { readonly label: string })[];
  /** Counts replies to this message. */
  readonly draw: number;
}

export interface Listener {
  begin(column: number): void;
  token(column: number, token: ChatToken): void;
  end(column: number, reply: ChatReply): void;
}

export class Conversation {
  #exchanges: Exchange[] = [];
  constructor(
    public columns: readonly ChatModel[],
    readonly settings: ConversationSettings,
  ) {}

  get exchanges(): readonly Exchange[] {
    return this.#exchanges;
  }

  /** What a model has seen and said. A column that came later goes on from the first one's replies. */
  messages(column: number, exchanges: readonly Exchange[] = this.#exchanges): ChatTurn[] {
    const { system } = this.settings;
    return [
      ...(system === null ? [] : [{ role: "system" as const, content: system }]),
      ...exchanges.flatMap(({ message, replies }): ChatTurn[] => [
        { role: "user", content: message },
        { role: "assistant", content: (replies[column] ?? replies[0]!).content },
      ]),
    ];
  }

  /** Asks every model; the message counts once all have replied. */
  async say(message: string, listener: Listener, signal: AbortSignal, draw = 0): Promise<void> {
    const before = [...this.#exchanges];
    const { system: _, ...settings } = this.settings;
    const replies: (ChatReply & { label: string })[] = [];
    for (const [column, chat] of this.columns.entries()) {
      listener.begin(column);
      const messages: ChatTurn[] = [...this.messages(column, before), { role: "user", content: message }];
      const options = { ...settings, alternatives: 0, draw, scales: null };
      const reply = await chat.reply(messages, options, (token) => listener.token(column, token), signal);
      listener.end(column, reply);
      replies.push({ ...reply, label: chat.label });
    }
    this.#exchanges = [...before, { message, replies, draw }];
  }

  /** Draws the last reply again. */
  regenerate(listener: Listener, signal: AbortSignal): Promise<void> {
    const { message, draw } = this.#last();
    return this.#again(message, listener, signal, draw + 1);
  }

  /** Puts another message in the place of the last one. */
  edit(message: string, listener: Listener, signal: AbortSignal): Promise<void> {
    return this.#again(message, listener, signal, 0);
  }

  async #again(message: string, listener: Listener, signal: AbortSignal, draw: number): Promise<void> {
    const last = this.#last();
    this.#exchanges = this.#exchanges.slice(0, -1);
    try {
      await this.say(message, listener, signal, draw);
    } catch (error) {
      this.#exchanges.push(last);
      throw error;
    }
  }

  /** Takes the last message and its replies back. */
  undo(): void {
    this.#last();
    this.#exchanges.pop();
  }

  reset(): void {
    this.#exchanges = [];
  }

  #last(): Exchange {
    const last = this.#exchanges.at(-1);
    if (!last) throw new UsageError("nothing has been said yet", undefined, "write a message first");
    return last;
  }
}
