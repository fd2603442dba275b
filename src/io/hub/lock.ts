import { Database, SQLiteError } from "bun:sqlite";
import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import { withFileErrors } from "../atomic.ts";

/**
 * A file that one process at a time holds. The system gives it up when its holder dies, however that happens: SQLite
 * locks the file, which stays empty, and nothing is ever stored in it.
 */
export class FileLock implements Disposable {
  private constructor(readonly database: Database) {}

  /** Waits for the lock; `onWait` is called once if another process holds it. */
  static async acquire(path: string, onWait: () => void): Promise<FileLock> {
    withFileErrors("create folder", dirname(path), () => mkdirSync(dirname(path), { recursive: true }));
    for (let tries = 0; ; tries++) {
      const lock = withFileErrors("lock", path, () => FileLock.#take(path));
      if (lock !== null) return lock;
      if (tries === 0) onWait();
      await Bun.sleep(100);
    }
  }

  static #take(path: string): FileLock | null {
    const database = new Database(path, { create: true, readwrite: true });
    try {
      database.run("BEGIN EXCLUSIVE");
      return new FileLock(database);
    } catch (error) {
      database.close();
      if (error instanceof SQLiteError && error.code?.startsWith("SQLITE_BUSY")) return null;
      throw error;
    }
  }

  [Symbol.dispose](): void {
    this.database.close();
  }
}
