// Run by checkpoint-folder.test.ts and killed at a random moment: writes checkpoints until it dies.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  cleanTemporary,
  pruneCheckpoints,
  TRAIN_STATE,
  writeCheckpoint,
} from "../../src/io/checkpoint-folder.ts";

const [parent, first] = process.argv.slice(2);
cleanTemporary(parent!);
for (let step = Number(first); ; step++) {
  const write = (dir: string) => {
    for (let i = 0; i < 12; i++) writeFileSync(join(dir, `part-${i}`), Buffer.alloc(20_000, step));
    writeFileSync(join(dir, TRAIN_STATE), JSON.stringify({ step }));
  };
  writeCheckpoint(parent!, `step-${step}`, write);
  writeCheckpoint(parent!, "final", write);
  pruneCheckpoints(parent!, 2);
  process.stdout.write(`${step}\n`);
}
