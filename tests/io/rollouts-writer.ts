// Run by rollouts-db.test.ts and killed: 50 rows a transaction, the step announced once it is flushed.
import { RolloutsDb } from "../../src/io/rollouts-db.ts";

const db = new RolloutsDb(process.argv[2]!);
for (let step = 1; ; step++) {
  for (let i = 0; i < 50; i++)
    db.add({
      step,
      epoch: 0,
      prompt_index: 0,
      rollout_index: i,
      prompt: "p".repeat(200),
      completion: "c".repeat(500),
      reward: 0,
      advantage: 0,
    });
  db.flush();
  process.stdout.write(`${step}\n`);
}
