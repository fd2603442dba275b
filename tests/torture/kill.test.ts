/** kill -9 at random moments, over all recipes: what goes on ends with the bytes of the unbroken run. */
import { afterAll, test } from "bun:test";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { killRun, start } from "../run/program.ts";
import { Ledger, LONG_LIMIT, long, ROUNDS, SEED } from "./ledger.ts";
import { RECIPES, Subjects } from "./subjects.ts";

const subjects = new Subjects();
afterAll(() => subjects[Symbol.dispose]());
const random = new Random(SEED, Purpose.data);

// Kills of single recipes are tests of their own (tests/run); the short form takes one at random.
const chosen = long ? RECIPES : [RECIPES[random.below(RECIPES.length)]!];

test.each([...chosen])(
  `killed at random moments, seed ${SEED}: %s`,
  async (recipe) => {
    const ledger = new Ledger(`kill -9, ${recipe}`);
    const { seconds } = await subjects.whole(recipe);
    for (let round = 0; round < Math.max(1, ROUNDS); round++) {
      const name = `killed-${RECIPES.indexOf(recipe)}-${round}`;
      const run = join(subjects.root, name);
      const command = await subjects.command(recipe, name);
      // A run may be killed twice before it gets through.
      for (let kills = 1 + random.below(2), args = command; kills > 0; kills--) {
        const child = start(args);
        const moment = random.uniform() * seconds;
        await Bun.sleep(1000 * moment);
        await killRun(child, run);
        if (!(await Bun.file(join(run, "train_config.json")).exists())) break;
        args = ["train", "--resume_from", run];
      }
      ledger.enter(name, await subjects.recover(recipe, name));
    }
    ledger.close();
  },
  long ? LONG_LIMIT : 120_000,
);
