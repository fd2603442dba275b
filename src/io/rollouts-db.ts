import { Database, SQLiteError } from "bun:sqlite";
import { RlvError, UsageError } from "../core/errors.ts";

/** One training completion as it is stored. */
export interface RolloutRow {
  readonly step: number;
  readonly epoch: number;
  /** Position of the prompt in the dataset. */
  readonly prompt_index: number;
  /** Position of the completion in its group. */
  readonly rollout_index: number;
  readonly prompt: string;
  readonly completion: string;
  readonly reward: number;
  readonly advantage: number;
  /** Named parts of the reward; stored as JSON. */
  readonly components?: Readonly<Record<string, number>>;
  /** How it ended: "eos", "length" or "stop". */
  readonly finish?: string;
  /** Of every token of the completion, float32. */
  readonly logprobs?: Float32Array;
  /** Where the text of every token ends in `completion`, in UTF-16 units. */
  readonly token_ends?: Uint32Array;
  /** What a detector of reward hacks said; absent without one. */
  readonly flagged?: boolean;
  /** What else its reward says of it (a judge's distributions); stored as JSON. */
  readonly details?: Readonly<Record<string, unknown>>;
}

/** One evaluation completion; `mode` tells apart evaluations of one step (sampled, greedy, retain_only …). */
export interface EvalRolloutRow extends Omit<RolloutRow, "advantage"> {
  readonly mode?: string;
}

export const SCHEMA_VERSION = 2;
const KEY = { step: "INTEGER", epoch: "INTEGER", prompt_index: "INTEGER", rollout_index: "INTEGER" };
const CONTENT = { prompt: "TEXT", completion: "TEXT", reward: "REAL" };
/** What a row may lack; those of schema 1 lack all but the first. Arrays are stored little-endian. */
const OPTIONAL = {
  components: "TEXT",
  finish: "TEXT",
  logprobs: "BLOB",
  token_ends: "BLOB",
  flagged: "INTEGER",
  details: "TEXT",
};
const TABLES = {
  rollouts: {
    columns: { ...KEY, ...CONTENT, advantage: "REAL", ...OPTIONAL },
    unique: "step, epoch, prompt_index, rollout_index",
  },
  eval_rollouts: {
    columns: { ...KEY, mode: "TEXT", ...CONTENT, ...OPTIONAL },
    unique: "step, epoch, mode, prompt_index, rollout_index",
  },
} as const;
type Table = keyof typeof TABLES;
type Value = string | number | Uint8Array | null;

function columnSql(name: string, type: string): string {
  if (name in OPTIONAL) return `${name} ${type}`;
  return `${name} ${type} NOT NULL${name === "mode" ? " DEFAULT ''" : ""}`;
}

/**
 * rollouts.sqlite of a run. Rows are collected in memory and written in one transaction: by `flushSoon` when the
 * event loop next turns, which a run does while its device computes, or by `flush` at once. A failed flush keeps them
 * for the next, which throws what it failed of. The file survives kill -9 with all flushed transactions
 * whole (write-ahead log).
 */
export class RolloutsDb implements Disposable {
  #db: Database;
  #pending: [Table, Value[]][] = [];
  #timer: Timer | null = null;

  constructor(readonly path: string) {
    this.#db = this.#errors(
      "open",
      () => new Database(path, { create: true, readwrite: true, strict: true }),
    );
    try {
      this.#errors("open", () => this.#prepare());
    } catch (error) {
      this.#db.close();
      throw error;
    }
  }

  #prepare(): void {
    const db = this.#db;
    db.run("PRAGMA busy_timeout = 5000");
    db.run("PRAGMA journal_mode = WAL");
    db.run("PRAGMA synchronous = NORMAL");
    db.run("PRAGMA foreign_keys = ON");
    db.run("PRAGMA trusted_schema = OFF");
    const { user_version: version } = db.query("PRAGMA user_version").get() as { user_version: number };
    if (version > SCHEMA_VERSION)
      throw new UsageError(
        `written by a newer rlv (schema ${version})`,
        this.path,
        "use that version of rlv",
      );
    db.transaction(() => {
      for (const [table, { columns, unique }] of Object.entries(TABLES)) {
        const definitions = Object.entries(columns).map(([name, type]) => columnSql(name, type));
        db.run(`CREATE TABLE IF NOT EXISTS ${table} (${definitions.join(", ")}, UNIQUE (${unique})) STRICT`);
        const there = db.query(`SELECT name FROM pragma_table_info('${table}')`).all() as { name: string }[];
        for (const [name, type] of Object.entries(OPTIONAL))
          if (!there.some((column) => column.name === name))
            db.run(`ALTER TABLE ${table} ADD COLUMN ${columnSql(name, type)}`);
      }
      db.run(`PRAGMA user_version = ${SCHEMA_VERSION}`);
    }).immediate();
  }

  #errors<T>(action: string, body: () => T): T {
    try {
      return body();
    } catch (error) {
      if (!(error instanceof SQLiteError)) throw error;
      if (error.code === "SQLITE_FULL")
        throw new RlvError("disk full", this.path, "free some space there or choose another folder");
      if (error.code?.startsWith("SQLITE_CONSTRAINT_UNIQUE"))
        throw new RlvError(
          "a rollout is stored twice",
          this.path,
          "rows after the checkpoint were not deleted",
        );
      throw new RlvError(`cannot ${action} the database`, this.path, error.message);
    }
  }

  get pending(): number {
    return this.#pending.length;
  }

  add(row: RolloutRow): void {
    this.#collect("rollouts", row);
  }

  addEval(row: EvalRolloutRow): void {
    this.#collect("eval_rollouts", { mode: "", ...row });
  }

  #collect(table: Table, row: RolloutRow | EvalRolloutRow): void {
    const where = `step ${row.step}, prompt ${row.prompt_index}, rollout ${row.rollout_index}`;
    const given = row as unknown as Record<string, unknown>;
    const values = Object.entries(TABLES[table].columns).map(([name, type]): Value => {
      const value = given[name];
      if (name in OPTIONAL && value === undefined) return null;
      if (name === "components") return componentsText(value as object, where);
      if (name === "details") return JSON.stringify(value);
      if (typeof value === "boolean" && name === "flagged") return value ? 1 : 0;
      if (type === "BLOB") return bytesOf(value as Float32Array | Uint32Array);
      if (type === "TEXT" && typeof value === "string") return value.toWellFormed();
      if (type === "INTEGER" && Number.isSafeInteger(value)) return value as number;
      // SQLite stores NaN as NULL: the row would lie.
      if (type === "REAL" && Number.isFinite(value)) return value as number;
      throw new RlvError(
        `${name} is ${String(value)}`,
        where,
        "a stored rollout needs a finite reward and advantage",
      );
    });
    this.#pending.push([table, values]);
  }

  /** Writes the collected rows off the caller's path. */
  flushSoon(): void {
    if (this.#pending.length === 0 || this.#timer !== null) return;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      try {
        this.flush();
      } catch {
        // The rows are still there: the flush before the next checkpoint throws in its caller.
      }
    }, 0);
  }

  /** Writes the collected rows in one transaction. */
  flush(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#pending.length === 0) return;
    this.#errors("write", () => {
      this.#db
        .transaction(() => {
          const statements = new Map<Table, ReturnType<Database["query"]>>();
          for (const [table, values] of this.#pending) {
            let statement = statements.get(table);
            if (!statement) {
              const names = Object.keys(TABLES[table].columns);
              statement = this.#db.query(
                `INSERT INTO ${table} (${names.join(", ")}) VALUES (${names.map(() => "?").join(", ")})`,
              );
              statements.set(table, statement);
            }
            statement.run(...values);
          }
        })
        .immediate();
    });
    this.#pending = [];
  }

  /**
   * For resuming after checkpoint `step`: removes rows beyond it, collected ones too, and those of evaluations beyond
   * `evaluated`. Returns how many.
   */
  deleteAfterStep(step: number, evaluated = step): number {
    const before = this.#pending.length;
    const last = { rollouts: step, eval_rollouts: evaluated };
    this.#pending = this.#pending.filter(([table, values]) => (values[0] as number) <= last[table]);
    let removed = before - this.#pending.length;
    this.#errors("write", () => {
      this.#db
        .transaction(() => {
          for (const [table, kept] of Object.entries(last))
            removed += this.#db.query(`DELETE FROM ${table} WHERE step > ?`).run(kept).changes;
        })
        .immediate();
    });
    return removed;
  }

  /** Rows written, and the highest step among them (-1 if none). */
  extent(table: Table): { rows: number; lastStep: number } {
    return this.#errors("read", () => {
      const row = this.#db
        .query(`SELECT COUNT(*) AS rows, COALESCE(MAX(step), -1) AS lastStep FROM ${table}`)
        .get();
      return row as { rows: number; lastStep: number };
    });
  }

  /** Flushes and folds the log into the file, so that one file is the whole database. */
  close(): void {
    try {
      this.flush();
      this.#errors("write", () => this.#db.run("PRAGMA wal_checkpoint(TRUNCATE)"));
    } finally {
      this.#db.close();
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** A copy: rows are written later. */
function bytesOf(array: Float32Array | Uint32Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength).slice();
}

function componentsText(components: object, where: string): string {
  for (const [name, value] of Object.entries(components))
    if (!Number.isFinite(value))
      throw new RlvError(
        `reward component ${name} is ${String(value)}`,
        where,
        "a reward must be a finite number",
      );
  return JSON.stringify(components);
}
