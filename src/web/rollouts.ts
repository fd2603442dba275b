/** Rollouts of a run for the page: an index in memory that follows the file, and rows read from it when they are shown. */
import type { Database } from "bun:sqlite";
import { statSync } from "node:fs";
import { join } from "node:path";
import { RlvError } from "../core/errors.ts";
import { columnsOf, identityOf, readRollouts } from "../io/rollouts-reader.ts";
import { type DiversityStep, diversityOfStep, diversitySteps } from "../report/diversity-steps.ts";
import { rewardReport } from "../report/rewards.ts";
import type {
  DiversityPoint,
  DiversityReport,
  RewardReport,
  RolloutDetail,
  RolloutFull,
  RolloutPage,
  RolloutQuery,
  RolloutRowLight,
  RolloutTable,
  RolloutTables,
} from "./api.ts";
import { fold, type LightRow, RolloutIndex, TextChunk } from "./rollout-index.ts";
import { HttpError } from "./router.ts";

const TABLES = { train: "rollouts", eval: "eval_rollouts" } as const;
const NAMES: readonly RolloutTable[] = ["train", "eval"];
/** Rows read at once: a few milliseconds, between which others have their turn and the file is let go. */
const ROWS_AT_ONCE = 4000;
/** Texts kept in memory for searching, of one table; beyond it they are read again for every search. */
const TEXT_LIMIT = 400 << 20;
const HISTOGRAM_PARTS = 32;
const PREVIEW = { prompt: 240, completion: 480 };
/** Of what is shown of a long completion, before the text that was searched. */
const BEFORE_MATCH = 120;

/** Lets other requests have their turn. */
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

interface TableState {
  readonly index: RolloutIndex;
  readonly texts: TextPiece[];
  textRows: number;
  textBytes: number;
  search: { needle: string; found: Uint8Array } | null;
  /** By step and number of its rows. */
  readonly diversity: Map<string, DiversityStep>;
}

/** Texts of the rows from..to; null: not kept, read again when they are needed. */
interface TextPiece {
  readonly from: number;
  readonly to: number;
  readonly chunk: TextChunk | null;
}

const emptyTable = (): TableState => ({
  index: new RolloutIndex(),
  texts: [],
  textRows: 0,
  textBytes: 0,
  search: null,
  diversity: new Map(),
});

export class RunRollouts {
  readonly #path: string;
  #tables = { train: emptyTable(), eval: emptyTable() };
  /** What tells one training from a later one in the same folder. */
  #origin = "";
  #loading: Promise<void> | null = null;
  /** The last report on rewards, and what it was made from. */
  #rewards: { readonly signature: string; readonly report: RewardReport } | null = null;

  constructor(readonly dir: string) {
    this.#path = join(dir, "rollouts.sqlite");
  }

  /** Memory for texts. */
  get textBytes(): number {
    return this.#tables.train.textBytes + this.#tables.eval.textBytes;
  }

  dropTexts(): void {
    for (const table of NAMES) Object.assign(this.#tables[table], { texts: [], textRows: 0, textBytes: 0 });
  }

  /** Brings the index up to date. null: the run has no rollouts. */
  async tables(): Promise<RolloutTables | null> {
    await this.#refresh();
    if (identityOf(this.#path) === null) return null;
    const { train, eval: evaluated } = this.#tables;
    return { train: train.index.length, eval: evaluated.index.length, modes: evaluated.index.modes };
  }

  #refresh(): Promise<void> {
    this.#loading ??= this.#load().finally(() => {
      this.#loading = null;
    });
    return this.#loading;
  }

  async #load(): Promise<void> {
    const file = identityOf(this.#path);
    const origin = `${file?.ino} ${startOf(this.dir)}`;
    if (origin !== this.#origin || !this.#holds()) {
      this.#tables = { train: emptyTable(), eval: emptyTable() };
      this.#origin = origin;
    }
    if (file === null) return;
    const tables = this.#tables;
    for (const table of NAMES)
      for (;;) {
        const { index } = tables[table];
        const rows = this.#read((db) => lightRows(db, table, index.lastRow));
        for (const row of rows) index.add(row);
        if (rows.length < ROWS_AT_ONCE) break;
        await turn();
      }
  }

  /** Whether the last known rows are still those of the file: a resumed run removes what lies beyond its checkpoint. */
  #holds(): boolean {
    return NAMES.every((table) => {
      const { index } = this.#tables[table];
      if (index.length === 0) return true;
      if (identityOf(this.#path) === null) return false;
      const places = [index.length - 1, index.length - 2, index.length - 17, index.length - 129];
      const known = places.filter((at) => at >= 0).map((at) => index.row(at));
      return this.#read((db) =>
        known.every((row) => {
          const [there] = lightRows(db, table, row.rowid - 1, 1);
          return there !== undefined && Bun.deepEquals(there, row);
        }),
      );
    });
  }

  #read<T>(body: (db: Database) => T): T {
    try {
      return readRollouts(this.#path, body);
    } catch (error) {
      if (error instanceof RlvError)
        throw new HttpError(422, error.message.replace(this.#path, "rollouts.sqlite"));
      throw error;
    }
  }

  async page(query: RolloutQuery): Promise<RolloutPage> {
    const begin = performance.now();
    await this.#refresh();
    const table = query.table ?? "train";
    const state = this.#tables[table];
    const needle = fold(query.search ?? "");
    const found = needle === "" ? null : await this.#search(state, table, needle);
    const { index } = state;
    const places = index.select(query, found);
    const offset = query.offset ?? 0;
    const shown = [...places.subarray(offset, offset + (query.limit ?? 100))].map((at) => index.row(at));
    const texts = this.#previews(table, shown, needle);
    const rewards = index.rewards(places, HISTOGRAM_PARTS);
    const { extent } = index;
    return {
      rows: shown.map((row, i) => ({ ...lightOf(row), ...texts[i]! })),
      total: places.length,
      all: index.length,
      offset,
      last_row: query.upto ?? index.lastRow,
      extent:
        index.length === 0
          ? null
          : {
              step: extent.step,
              reward: extent.reward,
              advantage: extent.advantage.min <= extent.advantage.max ? extent.advantage : null,
              flagged: index.flagged,
              finishes: index.finishes,
              modes: index.modes,
            },
      histogram: rewards && { range: rewards.range, counts: rewards.counts },
      mean_reward: rewards?.mean ?? null,
      took_ms: performance.now() - begin,
    };
  }

  /** Reads the texts that a search will want, before it is asked for. */
  async warm(): Promise<void> {
    await this.#refresh();
    for (const table of NAMES) await this.#loadTexts(this.#tables[table], table);
  }

  async #loadTexts(state: TableState, table: RolloutTable): Promise<void> {
    while (state.textRows < state.index.length && state.textBytes < TEXT_LIMIT) {
      this.#addTexts(state, table);
      await turn();
    }
  }

  /** Reads the next piece of texts. */
  #addTexts(state: TableState, table: RolloutTable): TextPiece {
    const from = state.textRows;
    const to = Math.min(state.index.length, from + ROWS_AT_ONCE);
    const chunk = this.#textsOf(state, table, from, to);
    const keep = state.textBytes < TEXT_LIMIT;
    const piece = { from, to, chunk: keep ? chunk : null };
    state.texts.push(piece);
    state.textRows = to;
    if (keep) state.textBytes += chunk.byteLength;
    return { from, to, chunk };
  }

  #textsOf({ index }: TableState, table: RolloutTable, from: number, to: number): TextChunk {
    const [first, last] = [index.row(from).rowid, index.row(to - 1).rowid];
    const sql = `SELECT rowid, prompt, completion FROM ${TABLES[table]} WHERE rowid BETWEEN ? AND ? ORDER BY rowid`;
    const rows = this.#read((db) => db.query(sql).values(first, last) as [number, string, string][]);
    const texts = new Array<string>(to - from).fill("");
    let at = from;
    for (const [rowid, prompt, completion] of rows) {
      // Rows may have gone meanwhile: the next refresh finds that out and begins anew.
      while (at < to && index.row(at).rowid < rowid) at += 1;
      if (at < to && index.row(at).rowid === rowid) texts[at - from] = `${fold(prompt)}\0${fold(completion)}`;
    }
    return new TextChunk(texts);
  }

  async #search(state: TableState, table: RolloutTable, needle: string): Promise<Uint8Array> {
    const bytes = Buffer.from(needle);
    const known = state.search?.needle === needle ? state.search.found : new Uint8Array(0);
    const found = new Uint8Array(state.index.length);
    found.set(known.subarray(0, found.length));
    for (let i = 0; ; i++) {
      // While this waits for its turn, others may read texts too.
      if (i === state.texts.length && state.textRows >= found.length) break;
      const piece = state.texts[i] ?? this.#addTexts(state, table);
      if (piece.to <= known.length) continue;
      const chunk = piece.chunk ?? this.#textsOf(state, table, piece.from, piece.to);
      chunk.search(bytes, found, piece.from);
      await turn();
    }
    state.search = { needle, found };
    return found;
  }

  #previews(
    table: RolloutTable,
    rows: readonly LightRow[],
    needle: string,
  ): Pick<RolloutRowLight, "prompt" | "completion">[] {
    if (rows.length === 0) return [];
    const texts = this.#read(
      (db) =>
        db
          .query(
            `SELECT rowid, prompt, completion FROM ${TABLES[table]} WHERE rowid IN (${rows.map((row) => row.rowid).join(",")})`,
          )
          .values() as [number, string, string][],
    );
    const byRow = new Map(texts.map(([rowid, prompt, completion]) => [rowid, { prompt, completion }]));
    return rows.map(({ rowid }) => {
      const { prompt, completion } = byRow.get(rowid) ?? { prompt: "", completion: "" };
      return {
        prompt: begin(prompt, PREVIEW.prompt, needle),
        completion: begin(completion, PREVIEW.completion, needle),
      };
    });
  }

  /** How different the completions of some steps were; other questions have their turn between two steps. */
  async diversity(table: RolloutTable, most: number): Promise<DiversityReport> {
    if (identityOf(this.#path) === null) throw new HttpError(404, "the run keeps no rollouts");
    await this.#refresh();
    const known = this.#tables[table].diversity;
    const name = TABLES[table];
    const points: DiversityPoint[] = [];
    let template: string | null = null;
    for (const { step, rows } of this.#read((db) => diversitySteps(db, name, most))) {
      const key = `${step} ${rows}`;
      let found = known.get(key);
      if (found === undefined) {
        found = this.#read((db) => diversityOfStep(db, name, step));
        known.set(key, found);
        await turn();
      }
      const { completions, unique_share: unique, jaccard, template_share, degenerate, reasons } = found;
      points.push({ step, completions, unique, jaccard, template: template_share, degenerate, reasons });
      template = found.template;
    }
    return { points, template };
  }

  /** What rewards were made of at `steps` of the run's steps. */
  rewards(steps: number): RewardReport {
    if (identityOf(this.#path) === null) throw new HttpError(404, "the run keeps no rollouts");
    const path = this.#path;
    const signature = JSON.stringify([steps, identityOf(path), identityOf(`${path}-wal`)]);
    if (this.#rewards?.signature !== signature)
      this.#rewards = { signature, report: this.#read((db) => rewardReport(db, steps)) };
    return this.#rewards.report;
  }

  /** A rollout by its key, with its group. */
  detail(table: RolloutTable, mode: string, key: RolloutKey): RolloutDetail {
    const name = TABLES[table];
    const { step, epoch, prompt_index, rollout_index } = key;
    return this.#read((db) => {
      const selected = selection(db, table, [
        "prompt",
        "completion",
        "components",
        "details",
        "logprobs",
        "token_ends",
      ]);
      const modes = table === "eval" ? "AND mode = ?" : "";
      const bound = table === "eval" ? [step, epoch, mode] : [step, epoch];
      const group = db
        .query(
          `SELECT ${selected} FROM ${name} WHERE step = ? AND epoch = ? ${modes} AND prompt_index = ? ORDER BY rollout_index LIMIT 1024`,
        )
        .all(...bound, prompt_index) as FullRow[];
      const rollout = group.find((row) => row.rollout_index === rollout_index);
      if (rollout === undefined) throw new HttpError(404, "no such rollout");
      const neighbour = (compare: "<" | ">", order: "DESC" | "ASC"): string | null => {
        const row = db
          .query(
            `SELECT prompt_index, MIN(rollout_index) AS rollout_index FROM ${name} WHERE step = ? AND epoch = ? ${modes} AND prompt_index ${compare} ? GROUP BY prompt_index ORDER BY prompt_index ${order} LIMIT 1`,
          )
          .get(...bound, prompt_index) as { prompt_index: number; rollout_index: number } | null;
        return row === null ? null : keyOf({ step, epoch, ...row });
      };
      return {
        rollout: fullOf(rollout),
        group: group.map(fullOf),
        previous: neighbour("<", "DESC"),
        next: neighbour(">", "ASC"),
      };
    });
  }
}

export interface RolloutKey {
  readonly step: number;
  readonly epoch: number;
  readonly prompt_index: number;
  readonly rollout_index: number;
}

export function keyOf(key: RolloutKey): string {
  return `${key.step}-${key.epoch}-${key.prompt_index}-${key.rollout_index}`;
}

export function parseKey(text: string): RolloutKey {
  const parts = /^(\d{1,15})-(\d{1,15})-(\d{1,15})-(\d{1,15})$/.exec(text)?.slice(1).map(Number);
  if (parts === undefined) throw new HttpError(404, "no such rollout");
  const [step, epoch, prompt_index, rollout_index] = parts as [number, number, number, number];
  return { step, epoch, prompt_index, rollout_index };
}

/** When the training in a folder began: each writes its config anew. */
function startOf(dir: string): string {
  const stat = statSync(join(dir, "train_config.json"), { throwIfNoEntry: false });
  return stat === undefined ? "" : `${stat.ino} ${stat.mtimeMs}`;
}

const LIGHT = [
  "step",
  "epoch",
  "prompt_index",
  "rollout_index",
  "reward",
  "advantage",
  "flagged",
  "finish",
  "mode",
] as const;

/** What is asked of a table, where older ones lack some columns. */
function selection(db: Database, table: RolloutTable, more: readonly string[] = []): string {
  const there = columnsOf(db, TABLES[table]);
  const named = [...LIGHT, ...more].map((name) =>
    there.has(name) ? name : `${name === "mode" ? "''" : "NULL"} AS ${name}`,
  );
  const tokens = there.has("logprobs") ? "length(logprobs) / 4" : "NULL";
  return ["rowid", ...named, `${tokens} AS tokens`].join(", ");
}

function lightRows(db: Database, table: RolloutTable, after: number, limit = ROWS_AT_ONCE): LightRow[] {
  return db
    .query(`SELECT ${selection(db, table)} FROM ${TABLES[table]} WHERE rowid > ? ORDER BY rowid LIMIT ?`)
    .all(after, limit) as LightRow[];
}

interface FullRow extends LightRow {
  readonly prompt: string;
  readonly completion: string;
  readonly components: string | null;
  readonly details: string | null;
  readonly logprobs: Uint8Array | null;
  readonly token_ends: Uint8Array | null;
}

function lightOf(row: LightRow): Omit<RolloutRowLight, "prompt" | "completion"> {
  const { rowid: _, flagged, ...rest } = row;
  return { key: keyOf(row), ...rest, flagged: flagged === null ? null : flagged === 1 };
}

function fullOf(row: FullRow): RolloutFull {
  return {
    ...lightOf({
      rowid: row.rowid,
      step: row.step,
      epoch: row.epoch,
      prompt_index: row.prompt_index,
      rollout_index: row.rollout_index,
      reward: row.reward,
      advantage: row.advantage,
      flagged: row.flagged,
      finish: row.finish,
      mode: row.mode,
      tokens: row.tokens,
    }),
    prompt: row.prompt,
    completion: row.completion,
    components: (objectOf(row.components) as Record<string, number> | null) ?? {},
    details: objectOf(row.details),
    tokens_of: tokensOf(row),
  };
}

function objectOf(text: string | null): Record<string, unknown> | null {
  if (text === null) return null;
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}

/** The completion cut at its tokens' ends; null where the ends do not fit the text. */
function tokensOf({ completion, logprobs, token_ends }: FullRow): RolloutFull["tokens_of"] {
  if (logprobs === null || token_ends === null || logprobs.byteLength !== token_ends.byteLength) return null;
  const ends = new Uint32Array(token_ends.slice().buffer);
  const values = new Float32Array(logprobs.slice().buffer);
  const texts: string[] = [];
  let from = 0;
  for (const end of ends) {
    if (end < from || end > completion.length) return null;
    texts.push(completion.slice(from, end));
    from = end;
  }
  const numbers = Array.from(values, (value) => (Number.isFinite(value) ? value : null));
  // What no token covers is shown too.
  if (from < completion.length) {
    texts.push(completion.slice(from));
    numbers.push(null);
  }
  return { texts, logprobs: numbers };
}

/** The beginning of a text, or of where the searched text is in it. */
function begin(text: string, length: number, needle: string): string {
  if (text.length <= length) return text;
  const found = needle === "" ? 0 : fold(text).indexOf(needle);
  const from = found + needle.length <= length ? 0 : Math.max(0, found - BEFORE_MATCH);
  const to = Math.min(text.length, from + length);
  return `${from > 0 ? "…" : ""}${text.slice(from, to).toWellFormed()}${to < text.length ? "…" : ""}`;
}
