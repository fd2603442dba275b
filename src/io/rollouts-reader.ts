/**
 * rollouts.sqlite read by a process that is not its run. A reader must leave no trace: a run that writes is never made to
 * wait for long (its last checkpoint of the log waits for readers), and beside a finished file no -wal or -shm is left.
 * So connections live for one short read, and a file without a log is opened as immutable, which takes no locks and
 * makes no files; if a log has come meanwhile, what was read is read again the ordinary way.
 */
import { constants, Database, SQLiteError } from "bun:sqlite";
import { statSync } from "node:fs";
import { UsageError } from "../core/errors.ts";
import { SCHEMA_VERSION } from "./rollouts-db.ts";

/** Milliseconds to wait while a log is being recovered. */
const BUSY_MS = 1000;

export interface FileIdentity {
  readonly ino: number;
  readonly size: number;
  readonly mtimeMs: number;
}

/** Which file lies there; null: none. */
export function identityOf(path: string): FileIdentity | null {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat?.isFile() ? { ino: stat.ino, size: stat.size, mtimeMs: stat.mtimeMs } : null;
}

const hasLog = (path: string): boolean => (identityOf(`${path}-wal`)?.size ?? 0) > 0;

/** Reads; throws UsageError for a file that cannot be read (damaged, newer, locked), and what `body` throws. */
export function readRollouts<T>(path: string, body: (db: Database) => T): T {
  for (let attempt = 0; ; attempt++) {
    const before = identityOf(path);
    if (before === null) throw new UsageError("there is no such file", path, "the run keeps no rollouts");
    const immutable = attempt === 0 && !hasLog(path);
    try {
      const result = once(path, immutable, body);
      if (!immutable || (!hasLog(path) && same(before, identityOf(path)))) return result;
    } catch (error) {
      // What looks damaged may be a file that was changed while it was thought to be at rest.
      if (!immutable || !(error instanceof SQLiteError) || (!hasLog(path) && same(before, identityOf(path))))
        throw error instanceof SQLiteError ? problemOf(error, path) : error;
    }
  }
}

function same(a: FileIdentity, b: FileIdentity | null): boolean {
  return b !== null && a.ino === b.ino && a.size === b.size && a.mtimeMs === b.mtimeMs;
}

function once<T>(path: string, immutable: boolean, body: (db: Database) => T): T {
  const db = immutable
    ? new Database(
        `file:${encodeURI(path).replaceAll("?", "%3f").replaceAll("#", "%23")}?immutable=1`,
        constants.SQLITE_OPEN_READONLY | constants.SQLITE_OPEN_URI,
      )
    : new Database(path, { readonly: true });
  try {
    db.run(`PRAGMA busy_timeout = ${BUSY_MS}`);
    db.run("PRAGMA trusted_schema = OFF");
    const { user_version: version } = db.query("PRAGMA user_version").get() as { user_version: number };
    if (version > SCHEMA_VERSION)
      throw new UsageError(`written by a newer rlv (schema ${version})`, path, "use that version of rlv");
    return body(db);
  } finally {
    db.close();
  }
}

function problemOf(error: SQLiteError, path: string): UsageError {
  switch (error.code) {
    case "SQLITE_NOTADB":
    case "SQLITE_CORRUPT":
    case "SQLITE_CORRUPT_VTAB":
      return new UsageError("the database is damaged", path, "restore it from a copy");
    case "SQLITE_BUSY":
    case "SQLITE_LOCKED":
      return new UsageError("the database is locked", path, "another program holds it");
    case "SQLITE_ERROR":
      return new UsageError("the database is not as rlv writes it", path, error.message);
    default:
      return new UsageError("the database cannot be read", path, error.code ?? error.message);
  }
}

/** Columns of a table; empty: there is no such table. */
export function columnsOf(db: Database, table: string): ReadonlySet<string> {
  const rows = db.query("SELECT name FROM pragma_table_info(?)").all(table) as { name: string }[];
  return new Set(rows.map(({ name }) => name));
}
