/** Rewards that fail in every way, numbers that are none: a run says so in one line and goes on to the bytes of the unbroken one. */
import { afterAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { openSafetensors } from "../../src/io/safetensors.ts";
import { rlv } from "../run/program.ts";
import { Ledger, LONG_LIMIT, long, ROUNDS, SEED } from "./ledger.ts";
import { FAULT, faultOf, MODULE_FAULTS, Subjects } from "./subjects.ts";

const subjects = new Subjects();
afterAll(() => subjects[Symbol.dispose]());
const random = new Random(SEED, Purpose.data);
const RECIPE = "arithmetic, a module's reward";
const LIMIT = long ? LONG_LIMIT : 120_000;
/** Calls of a whole run: three generations of 8 completions, three evaluations of 2 × 4. */
const CALLS = 3 * 8 + 3 * 8;

test(
  `a reward hangs, spins, ends, floods or gives no number at a random call, seed ${SEED}`,
  async () => {
    const ledger = new Ledger("a reward fails");
    await subjects.whole(RECIPE);
    expect(MODULE_FAULTS.length).toBe(11);
    const faults = long ? MODULE_FAULTS : [MODULE_FAULTS[random.below(MODULE_FAULTS.length)]!, "hang"];
    for (let round = 0; round < Math.max(1, ROUNDS); round++)
      for (const fault of faults) {
        const name = `${fault.replace(" ", "-")}-${round}`;
        const call = 1 + random.below(CALLS);
        const gate = join(subjects.root, FAULT);
        writeFileSync(gate, JSON.stringify({ call, fault }));
        const ended = await rlv(await subjects.command(RECIPE, name));
        rmSync(gate);
        const silent = ended.code === 0 && fault !== "flood" ? "nothing was said" : null;
        ledger.enter(
          `${fault} at call ${call}`,
          silent ?? faultOf(ended) ?? (await subjects.recover(RECIPE, name)),
        );
      }
    ledger.close();
  },
  LIMIT,
);

/** Puts `value` in the place of one number of a checkpoint's file and makes the manifest say that this is right. */
function plant(checkpoint: string, file: string, value: number): string {
  const path = join(checkpoint, file);
  using tensors = openSafetensors(path);
  const names = [...tensors.tensors.keys()];
  const name = names[random.below(names.length)]!;
  const { dtype, begin, bytes: size } = tensors.tensors.get(name)!;
  const bytes = readFileSync(path);
  const width = dtype === "F32" ? 4 : 2;
  const at = begin + width * random.below(size / width);
  const view = Buffer.from(new Float32Array([value]).buffer);
  view.copy(bytes, at, 4 - width);
  writeFileSync(path, bytes);
  const manifest = join(checkpoint, "manifest.json");
  const listed = JSON.parse(readFileSync(manifest, "utf8"));
  listed.files[file].sha256 = createHash("sha256").update(bytes).digest("hex");
  writeFileSync(manifest, JSON.stringify(listed));
  return `${value} in ${name} of ${file}`;
}

test(
  `NaN, infinity and the largest number in weights and moments, seed ${SEED}`,
  async () => {
    const ledger = new Ledger("a number that is none in a checkpoint");
    await subjects.whole(RECIPE);
    const files = ["model.safetensors", "optimizer.safetensors"];
    const values = [Number.NaN, Number.POSITIVE_INFINITY, 3e38];
    for (let round = 0; round < Math.max(1, ROUNDS); round++)
      for (const [i, file] of files.entries())
        for (const value of long ? values : [values[random.below(3)]!]) {
          const name = `planted-${round}-${i}-${value}`;
          const run = join(subjects.root, name);
          const gate = join(subjects.root, FAULT);
          // Half-way a reward ends the run, which saves what it has.
          writeFileSync(gate, JSON.stringify({ call: CALLS / 2, fault: "throw" }));
          expect((await rlv(await subjects.command(RECIPE, name))).code).toBe(1);
          rmSync(gate);
          const checkpoints = join(run, "checkpoints");
          const newest = readdirSync(checkpoints).sort().at(-1)!;
          const sound = join(subjects.root, "sound");
          cpSync(run, sound, { recursive: true });
          const what = plant(join(checkpoints, newest), file, value);
          const ended = await rlv(["train", "--resume_from", run]);
          rmSync(run, { recursive: true });
          cpSync(sound, run, { recursive: true });
          rmSync(sound, { recursive: true });
          // One that no product meets, a row of the embedding say, may do nothing.
          ledger.enter(what, faultOf(ended) ?? (await subjects.recover(RECIPE, name)));
        }
    ledger.close();
  },
  LIMIT,
);
