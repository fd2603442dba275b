/** The server's part of the chat page: which models there are, and replies relayed from the chat process. */
import { randomUUID } from "node:crypto";
import * as z from "zod";
import type { ChatSampling, ReplyOptions } from "../core/chat.ts";
import type { ChatEngineOptions, ChatModelSpec } from "../core/chat-process.ts";
import type { ChatModelEntry, ChatModels, ReplyEvents, StopAnswer } from "./chat-api.ts";
import { ChatChild, ChatFailure } from "./chat-child.ts";
import type { Register, WebContext } from "./context.ts";
import { type Call, events, HttpError, json } from "./router.ts";
import { baseOf, type SpeakingRun, speaks } from "./speakers.ts";

export interface ChatRoutesOptions {
  readonly engine: ChatEngineOptions;
  /** Models named on the command line. */
  readonly models: readonly Omit<ChatModelSpec, "id">[];
  /** Opens them with the page. */
  readonly autoload: boolean;
  readonly defaults: ChatSampling & { readonly system: string | null; readonly thinking: boolean | null };
}

/** Characters of a conversation: more than any context takes. */
const MOST_CHARACTERS = 400_000;
const MOST_TURNS = 1000;
/** Models side by side. */
const MOST_COLUMNS = 6;

const modelId = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_-]{0,199}$/);
const finite = (least: number, most: number) => z.number().min(least).max(most);
const whole = (least: number, most: number) => z.number().int().min(least).max(most);
const keep = z.array(modelId).max(MOST_COLUMNS);
const replyOptions = z.strictObject({
  temperature: finite(0, 100),
  top_p: z.number().gt(0).max(1),
  top_k: whole(0, 0xffffffff),
  min_p: finite(0, 1),
  max_new_tokens: whole(1, 1 << 20),
  seed: whole(0, 0xffffffff),
  thinking: z.boolean().nullable(),
  alternatives: whole(0, 20),
  draw: whole(0, 1 << 30),
  scales: z.strictObject({ retain: finite(-100, 100), forget: finite(-100, 100) }).nullable(),
});
const openRequest = z.strictObject({ id: modelId, keep });
const stopRequest = z.strictObject({ call: z.uuid() });
const replyRequest = z.strictObject({
  model: modelId,
  keep,
  messages: z
    .array(z.strictObject({ role: z.enum(["system", "user", "assistant"]), content: z.string() }))
    .min(1),
  options: replyOptions,
});

/** A body as its schema has it; what is wrong is named by its place. */
function bodyAs<T extends z.ZodType>(schema: T, body: unknown): z.output<T> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const { path, message } = result.error.issues[0]!;
  throw new HttpError(400, `${path.length > 0 ? `${path.join(".")}: ` : ""}${message}`);
}

/** What went wrong with a call, as an answer. */
const answerOf = (error: unknown): HttpError =>
  error instanceof HttpError
    ? error
    : error instanceof ChatFailure
      ? new HttpError(error.mistake ? 422 : 502, error.message)
      : new HttpError(500, "the chat failed, the server's terminal says why");

export function chatRoutes(options: ChatRoutesOptions): Register {
  return (router, context) => {
    const chats = new Chats(options, context);
    router.add("GET", "/api/chat/models", async () => json(await chats.list()));
    router.add("POST", "/api/chat/open", async ({ body }) => {
      const { id, keep } = bodyAs(openRequest, body);
      try {
        return json(await chats.child.open(chats.spec(id), keep));
      } catch (error) {
        throw answerOf(error);
      }
    });
    router.add("POST", "/api/chat/reply", (call) => chats.reply(call));
    router.add("POST", "/api/chat/stop", ({ body }) => json(chats.stop(bodyAs(stopRequest, body).call)));
    context.onClose(() => chats.child.close());
  };
}

class Chats {
  readonly child: ChatChild;
  /** What ends replies under way, by the name that the page has for them. */
  readonly #stops = new Map<string, () => void>();
  /** Models that are replying. */
  readonly #busy = new Set<string>();

  constructor(
    readonly options: ChatRoutesOptions,
    readonly context: WebContext,
  ) {
    this.child = new ChatChild(context.program, options.engine);
  }

  async list(): Promise<ChatModels> {
    const { models, autoload, defaults } = this.options;
    const given = models.map(({ label }, i) => this.#entry(givenId(i), label, null, false));
    const known = (await this.context.speakers()).flatMap((run) => this.#ofRun(run));
    return {
      models: [...given, ...known],
      selected: given.map(({ id }) => id),
      autoload,
      defaults: { ...defaults, alternatives: 5, draw: 0, scales: null },
    };
  }

  #ofRun({ id, name, checkpoints, base }: SpeakingRun): ChatModelEntry[] {
    const before = base ? [this.#entry(`${id}_base`, "before", { id, name }, true)] : [];
    return [...before, ...checkpoints.map((each) => this.#entry(`${id}_${each}`, each, { id, name }, false))];
  }

  #entry(id: string, label: string, run: ChatModelEntry["run"], base: boolean): ChatModelEntry {
    return { id, label, run, base, open: this.child.models.get(id) ?? null };
  }

  /** The folders behind an id; 404 for one that is not in the list. */
  spec(id: string): ChatModelSpec {
    const given = this.options.models.findIndex((_, i) => givenId(i) === id);
    if (given >= 0) return { id, ...this.options.models[given]! };
    const cut = id.lastIndexOf("_");
    const [runId, name] = [id.slice(0, cut), id.slice(cut + 1)];
    if (cut < 1) throw new HttpError(404, "no such model");
    const run = this.context.run(runId);
    if (name === "base") {
      const base = baseOf(run.dir);
      if (base === null) throw new HttpError(404, "the run does not say which model it began with");
      return { id, label: `${run.name}: before`, model: base, adapter: null };
    }
    const { dir } = this.context.checkpoint(runId, name);
    if (!speaks(dir)) throw new HttpError(404, "the checkpoint is no language model");
    return { id, label: `${run.name}: ${name}`, model: dir, adapter: null };
  }

  reply(call: Call): Response {
    const { model, keep, messages, options } = bodyAs(replyRequest, call.body);
    const characters = messages.reduce((sum, { content }) => sum + content.length, 0);
    if (messages.length > MOST_TURNS || characters > MOST_CHARACTERS)
      throw new HttpError(
        413,
        `a conversation has at most ${MOST_TURNS} turns and ${MOST_CHARACTERS} characters: start a new one`,
      );
    const spec = this.spec(model);
    if (this.#busy.has(model))
      throw new HttpError(409, `${spec.label} is replying already: stop that reply first`);
    const id = randomUUID();
    return events(call, (stream) => {
      this.#busy.add(model);
      const send = <Name extends keyof ReplyEvents>(name: Name, data: ReplyEvents[Name]) =>
        stream.send(name, data);
      let stopped = false;
      let stop = () => {};
      this.#stops.set(id, () => {
        stopped = true;
        stop();
      });
      const run = async () => {
        try {
          send("begin", { call: id });
          send("open", await this.child.open(spec, keep));
          const reply = this.child.reply(model, messages, options satisfies ReplyOptions, (tokens) => {
            if (!send("tokens", tokens)) stop();
          });
          stop = reply.stop;
          if (stopped) stop();
          send("done", await reply.reply);
        } catch (error) {
          const answer = answerOf(error);
          if (answer.status === 500)
            process.stderr.write(`rlv: the chat failed: ${error instanceof Error ? error.message : error}\n`);
          send("failed", { error: answer.message });
        } finally {
          this.#stops.delete(id);
          this.#busy.delete(model);
          stream.close();
        }
      };
      void run();
      // The page may have gone in the middle.
      return () => this.#stops.get(id)?.();
    });
  }

  stop(call: string): StopAnswer {
    const stop = this.#stops.get(call);
    stop?.();
    return { stopped: stop !== undefined };
  }
}

const givenId = (index: number): string => `given-${index}`;
