/** One of those who want the lock of a folder, again and again: `lock-fixture.ts FOLDER ROUNDS SEED`. Prints how often it had it. */
import { renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { LOCK, takeLock } from "../../src/io/run-lock.ts";

const [dir, rounds, seed] = process.argv.slice(2) as [string, string, string];
const random = new Random(Number(seed), Purpose.data);
const inside = join(dir, "inside");
let had = 0;
for (let round = 0; round < Number(rounds); round++) {
  const lock = takeLock(dir);
  if (typeof lock === "number") {
    Bun.sleepSync(random.below(2));
    continue;
  }
  had += 1;
  // Fails where another has the lock too.
  writeFileSync(inside, String(process.pid), { flag: "wx" });
  if (random.below(2) === 0) lock.add(process.pid);
  Bun.sleepSync(random.below(2));
  rmSync(inside);
  if (random.below(2) === 0) lock.release();
  else {
    // As if it had been killed.
    const dead = join(dir, `dead-${process.pid}`);
    writeFileSync(dead, `999999999 ${round}\n`);
    renameSync(dead, join(dir, LOCK));
  }
}
process.stdout.write(String(had));
