/** The conversation of the chat page: what was asked, what each column replied, what is being replied. */
import type {
  AdapterScales,
  ChatModelInfo,
  ChatReply,
  ChatSampling,
  ChatToken,
  ChatTurn,
} from "../../core/chat.ts";
import type { ChatModelEntry, ChatModels, StopAnswer } from "../chat-api.ts";
import { streamReply } from "./chat-stream.ts";
import { ask, post } from "./client.ts";
import { store } from "./store.ts";

export interface Settings extends ChatSampling {
  readonly system: string;
  readonly thinking: boolean | null;
}

export interface Column {
  readonly key: number;
  readonly model: string;
  readonly state: "closed" | "opening" | "ready" | "failed";
  readonly info: ChatModelInfo | null;
  readonly error: string | null;
  readonly scales: AdapterScales | null;
}

export interface Reply {
  readonly model: string;
  readonly tokens: readonly ChatToken[];
  readonly done: ChatReply | null;
  readonly error: string | null;
  readonly running: boolean;
  readonly draw: number;
}

export interface Exchange {
  readonly key: number;
  readonly message: string;
  /** By the column's key. */
  readonly replies: Readonly<Record<number, Reply>>;
}

export interface ChatState {
  readonly models: readonly ChatModelEntry[] | null;
  readonly failure: Error | null;
  readonly settings: Settings;
  readonly alternatives: number;
  readonly columns: readonly Column[];
  readonly exchanges: readonly Exchange[];
}

const MOST_COLUMNS = 6;

export const chat = store<ChatState>({
  models: null,
  failure: null,
  settings: {
    ...{ system: "", thinking: null, temperature: 1, top_p: 1, top_k: 0, min_p: 0 },
    ...{ max_new_tokens: 512, seed: 42 },
  },
  alternatives: 0,
  columns: [],
  exchanges: [],
});

let nextKey = 1;
/** Names of running replies at the server, by exchange and column. */
const calls = new Map<string, string>();
const callKey = (exchange: number, column: number) => `${exchange}/${column}`;

const change = (part: Partial<ChatState>) => chat.set({ ...chat.get(), ...part });
export const isRunning = ({ exchanges }: ChatState): boolean =>
  exchanges.some(({ replies }) => Object.values(replies).some(({ running }) => running));
const entryOf = (state: ChatState, id: string): ChatModelEntry | undefined =>
  state.models?.find((model) => model.id === id);

export function nameOf(state: ChatState, id: string): string {
  const entry = entryOf(state, id);
  if (!entry) return id;
  return entry.run === null ? entry.label : `${entry.run.name} · ${entry.label}`;
}

/** Asks which models there are; the first time with their settings and the columns to begin with. */
export async function loadModels(wanted: readonly string[]): Promise<void> {
  let answer: ChatModels;
  try {
    answer = await ask<ChatModels>("/api/chat/models");
  } catch (error) {
    change({ failure: error as Error });
    return;
  }
  const first = chat.get().models === null;
  change({ models: answer.models, failure: null });
  if (first) {
    const { system, draw: _draw, scales: _scales, alternatives, ...sampling } = answer.defaults;
    change({ settings: { ...sampling, system: system ?? "" }, alternatives });
  }
  const known = wanted.filter((id) => answer.models.some((model) => model.id === id));
  if (known.length > 0) showModels(known);
  else if (chat.get().columns.length === 0) {
    const fallback = answer.models[0]?.id;
    showModels(answer.selected.length > 0 ? answer.selected : fallback === undefined ? [] : [fallback]);
  }
  if (first && answer.autoload) for (const { key } of chat.get().columns) void openColumn(key);
}

/** Columns for these models, those that are there kept. */
export function showModels(ids: readonly string[]): void {
  const { columns } = chat.get();
  const wanted = ids.slice(0, MOST_COLUMNS);
  if (columns.length === wanted.length && columns.every(({ model }, i) => model === wanted[i])) return;
  change({
    columns: wanted.map((model, i) =>
      columns[i]?.model === model ? columns[i]! : columnFor(model, columns[i]?.key),
    ),
  });
}

function columnFor(model: string, key = nextKey++): Column {
  const info = entryOf(chat.get(), model)?.open ?? null;
  return { key, model, state: info ? "ready" : "closed", info, error: null, scales: info?.scales ?? null };
}

export const canAdd = ({ columns, models }: ChatState): boolean =>
  columns.length < MOST_COLUMNS && (models?.length ?? 0) > 0;

export function addColumn(): void {
  const state = chat.get();
  if (!canAdd(state)) return;
  const unused = state.models!.find(({ id }) => !state.columns.some(({ model }) => model === id));
  // The same model twice would have to reply twice at once.
  if (unused) change({ columns: [...state.columns, columnFor(unused.id)] });
}

export function removeColumn(key: number): void {
  const { columns } = chat.get();
  if (columns.length > 1) change({ columns: columns.filter((column) => column.key !== key) });
}

export function setModel(key: number, model: string): void {
  const { columns } = chat.get();
  if (columns.some((column) => column.model === model)) return;
  change({ columns: columns.map((column) => (column.key === key ? columnFor(model, key) : column)) });
}

export function setScales(key: number, scales: AdapterScales): void {
  changeColumn(key, { scales });
}

export function setSettings(part: Partial<Settings>): void {
  change({ settings: { ...chat.get().settings, ...part } });
}

function changeColumn(key: number, part: Partial<Column>): void {
  change({
    columns: chat.get().columns.map((column) => (column.key === key ? { ...column, ...part } : column)),
  });
}

const shownModels = () => chat.get().columns.map(({ model }) => model);

function opened(key: number, info: ChatModelInfo): void {
  const column = chat.get().columns.find((each) => each.key === key);
  if (column?.model !== info.id || column.state === "ready") return;
  changeColumn(key, { state: "ready", info, error: null, scales: column.scales ?? info.scales });
}

export async function openColumn(key: number): Promise<void> {
  const column = chat.get().columns.find((each) => each.key === key);
  if (!column || column.state === "ready" || column.state === "opening") return;
  changeColumn(key, { state: "opening", error: null });
  try {
    opened(key, await post<ChatModelInfo>("/api/chat/open", { id: column.model, keep: shownModels() }));
  } catch (error) {
    changeColumn(key, { state: "failed", error: (error as Error).message });
  }
}

function changeReply(exchange: number, column: number, part: (reply: Reply) => Partial<Reply>): void {
  change({
    exchanges: chat.get().exchanges.map((each) => {
      const reply = each.key === exchange ? each.replies[column] : undefined;
      if (!reply) return each;
      return { ...each, replies: { ...each.replies, [column]: { ...reply, ...part(reply) } } };
    }),
  });
}

/** What a column has seen before an exchange. One that came later goes on from what another replied. */
function messagesBefore(state: ChatState, column: number, index: number): ChatTurn[] {
  const { system } = state.settings;
  const turns: ChatTurn[] = system.trim() === "" ? [] : [{ role: "system", content: system }];
  for (const { message, replies } of state.exchanges.slice(0, index)) {
    const said = replies[column]?.done ?? Object.values(replies).find(({ done }) => done !== null)?.done;
    if (!said) continue;
    turns.push({ role: "user", content: message }, { role: "assistant", content: said.content });
  }
  return turns;
}

/** Sends a message to every column. */
export function send(message: string): void {
  const state = chat.get();
  if (message.trim() === "" || isRunning(state) || state.columns.length === 0) return;
  const exchange: Exchange = { key: nextKey++, message, replies: {} };
  change({ exchanges: [...state.exchanges, exchange] });
  for (const { key } of state.columns) void reply(state.exchanges.length, key, 0);
}

/** Draws a reply again, in one column or in all; what was said after it is gone. */
export function regenerate(index: number, column?: number): void {
  const state = chat.get();
  if (isRunning(state)) return;
  change({ exchanges: state.exchanges.slice(0, index + 1) });
  const keys = column === undefined ? state.columns.map(({ key }) => key) : [column];
  for (const key of keys) {
    const before = state.exchanges[index]!.replies[key];
    void reply(index, key, before && before.error === null ? before.draw + 1 : (before?.draw ?? 0));
  }
}

/** Puts another message in the place of one that was sent; what was said after it is gone. */
export function edit(index: number, message: string): void {
  const state = chat.get();
  if (isRunning(state) || message.trim() === "") return;
  change({ exchanges: state.exchanges.slice(0, index) });
  send(message);
}

export function stopAll(): void {
  for (const call of calls.values()) void post<StopAnswer>("/api/chat/stop", { call }).catch(() => {});
}

export function startAnew(): void {
  stopAll();
  change({ exchanges: [] });
}

async function reply(index: number, key: number, draw: number): Promise<void> {
  const state = chat.get();
  const column = state.columns.find((each) => each.key === key);
  const exchange = state.exchanges[index];
  if (!column || !exchange) return;
  const { system: _, ...sampling } = state.settings;
  const fresh: Reply = {
    ...{ model: column.model, tokens: [], done: null, error: null, running: true, draw },
  };
  change({
    exchanges: state.exchanges.map((each) =>
      each.key === exchange.key ? { ...each, replies: { ...each.replies, [key]: fresh } } : each,
    ),
  });
  if (column.state !== "ready") changeColumn(key, { state: "opening", error: null });
  const name = callKey(exchange.key, key);
  const fail = (error: string) => {
    changeReply(exchange.key, key, () => ({ error, running: false }));
    if (chat.get().columns.find((each) => each.key === key)?.state === "opening")
      changeColumn(key, { state: "failed", error });
  };
  try {
    await streamReply(
      {
        model: column.model,
        keep: shownModels(),
        messages: [...messagesBefore(state, key, index), { role: "user", content: exchange.message }],
        options: { ...sampling, alternatives: state.alternatives, draw, scales: column.scales },
      },
      {
        begin: ({ call }) => calls.set(name, call),
        open: (info) => opened(key, info),
        tokens: (tokens) =>
          changeReply(exchange.key, key, (before) => ({ tokens: [...before.tokens, ...tokens] })),
        done: (done) => changeReply(exchange.key, key, () => ({ done, running: false })),
        failed: ({ error }) => fail(error),
      },
    );
  } catch (error) {
    fail((error as Error).message);
  } finally {
    calls.delete(name);
  }
}

/** The conversation as a person reads it. */
export function markdownOf(state: ChatState): string {
  const parts = state.settings.system.trim() === "" ? [] : ["## System", state.settings.system];
  for (const { message, replies } of state.exchanges) {
    parts.push("## You", message);
    for (const { model, done } of Object.values(replies)) {
      if (done === null) continue;
      parts.push(`## ${nameOf(state, model)}`);
      if (done.thinking !== "") parts.push(done.thinking.replace(/^/gm, "> "));
      parts.push(done.answer);
    }
  }
  return `${parts.join("\n\n")}\n`;
}

/** A line for each column: {"model", "messages", "settings"}. */
export function jsonlOf(state: ChatState): string {
  const { system: _, ...settings } = state.settings;
  return state.columns
    .map(({ key, model, scales }) => {
      const messages = messagesBefore(state, key, state.exchanges.length);
      return `${JSON.stringify({ model: nameOf(state, model), messages, settings: { ...settings, scales } })}\n`;
    })
    .join("");
}
