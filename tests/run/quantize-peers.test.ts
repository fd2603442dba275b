/** Quantized folders between rlv and transformers with bitsandbytes: runs where RLV_PYTHON names a Python with them. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { QuantizationScheme } from "../../src/io/bitsandbytes.ts";
import { openWeights, readModelConfig, writeQuantizedFolder } from "../../src/io/hf-folder.ts";
import { largest } from "../golden/support.ts";
import { configOf, makeFolder, Opened, outputs, sequences } from "./quantize-fixture.ts";

const python = process.env.RLV_PYTHON;
const scratch = mkdtempSync(join(tmpdir(), "rlv-peers-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

interface Result {
  readonly modules: Readonly<Record<string, number>>;
  readonly problems: Readonly<Record<string, unknown>>;
  readonly config: Readonly<Record<string, unknown>>;
  readonly outputs: number[][];
  readonly forward: number[][] | null;
}

const SCHEMES: Readonly<Record<string, QuantizationScheme>> = {
  int8: { type: "int8", double: false },
  nf4: { type: "nf4", double: true },
  "nf4-single": { type: "nf4", double: false },
};

/** Folders by both, opened by both. One process for all: imports take longer than the work. */
function prepare() {
  const biased = { architectures: ["Qwen2ForCausalLM"], model_type: "qwen2", head_dim: 16 };
  const plain = {
    policy: { config: configOf("causal"), dtype: "float32" },
    "bfloat16 policy": { config: configOf("causal"), dtype: "bfloat16" },
    "policy with a head and biases": {
      config: configOf("causal", { ...biased, tie_word_embeddings: false }),
      dtype: "float32",
    },
    "reward model": { config: configOf("reward"), dtype: "float32" },
    "bfloat16 reward model": { config: configOf("reward"), dtype: "bfloat16" },
  } as const;
  const cases = Object.entries(plain).flatMap(([kind, { config, dtype }]) => {
    const source = makeFolder(join(scratch, kind), config, dtype);
    return [...Object.keys(SCHEMES), "fp4"].flatMap((type) =>
      (["rlv", "transformers"] as const)
        .filter((by) => by === "transformers" || type in SCHEMES)
        .map((by) => ({ kind, source, dtype, type, by, folder: join(scratch, `${kind}-${type}-${by}`) })),
    );
  });
  for (const { source, type, by, folder } of cases) {
    if (by !== "rlv") continue;
    using weights = openWeights(source);
    writeQuantizedFolder(folder, readModelConfig(source), weights, SCHEMES[type]!, []);
  }
  const jobs = cases.map(({ by, folder, source, type, dtype }) => ({
    do: by === "rlv" ? "open" : "write",
    folder,
    dtype,
    sequences: sequences.map((ids) => [...ids]),
    ...(by === "rlv" ? {} : { source, type }),
  }));
  const [asked, told] = [join(scratch, "jobs.json"), join(scratch, "results.json")];
  writeFileSync(asked, JSON.stringify(jobs));
  const script = join(import.meta.dir, "../python/check_quant.py");
  const env = { ...process.env, HF_HUB_OFFLINE: "1", OMP_NUM_THREADS: "1", OMP_WAIT_POLICY: "passive" };
  const { exitCode, stderr } = Bun.spawnSync([python!, script, asked, told], { env });
  if (exitCode !== 0) throw new Error(stderr.toString().split("\n").slice(-12).join("\n"));
  const results: Result[] = JSON.parse(readFileSync(told, "utf8"));
  return cases.map((c, i) => ({ ...c, result: results[i]! }));
}

if (!python)
  test.skip("quantized folders between rlv and transformers: RLV_PYTHON names no Python", () => {});
else {
  const cases = prepare();
  describe.each(cases.map((c) => [`${c.type} ${c.kind} by ${c.by}`, c] as const))("%s", (_name, c) => {
    test("the same outputs here and there", () => {
      using opened = new Opened();
      const model = opened.open(c.folder);
      const got = outputs(opened.memory, model, 1);
      const { result } = c;
      expect(result.forward === null).toBe(c.dtype === "bfloat16");
      expect(result.problems).toEqual({});
      expect(result.modules).toEqual({ [c.type === "int8" ? "Linear8bitLt" : "Linear4bit"]: 14 });
      expect(got.length).toBe(result.outputs.length);
      got.forEach((values, i) => {
        expect(largest(values, result.outputs[i]!)).toBeLessThan(1e-4);
        // LLM.int8() rounds activations to bytes too.
        const loose = c.type === "int8" ? 0.5 : 1e-4;
        if (result.forward) expect(largest(values, result.forward[i]!)).toBeLessThan(loose);
      });
    });
  });

  const both = cases.filter(({ by, type }) => by === "transformers" && type in SCHEMES);
  test.each(both.map((c) => [`${c.type} ${c.kind}`, c] as const))(
    "%s: the same bytes in the files",
    (_name, c) => {
      const own = c.folder.replace(/transformers$/, "rlv");
      using ours = openWeights(own);
      using theirs = openWeights(c.folder);
      expect(ours.names().sort()).toEqual(theirs.names().sort());
      for (const name of ours.names()) {
        const [a, b] = [ours.read(name), theirs.read(name)];
        if (ours.dtype(name) === theirs.dtype(name) && Buffer.compare(a, b) === 0) {
          expect([name, ...ours.shape(name)]).toEqual([name, ...theirs.shape(name)]);
          continue;
        }
        // The mean of the scales, which is taken off all of them, is summed in another order: its last bit may differ.
        if (name.endsWith(".nested_absmax"))
          expect(largest(ours.readFloat32(name), theirs.readFloat32(name))).toBeLessThan(1e-7);
        else if (name.includes(".quant_state."))
          expect(Math.abs(offsetOf(a) - offsetOf(b))).toBeLessThan(3e-8);
        else if (name.endsWith(".weight.absmax"))
          expect(a.filter((x, i) => x !== b[i]).length).toBeLessThan(2);
        else expect(`${name} differs`).toBe("equal");
      }
      expect(readModelConfig(own).quantization!.raw).toEqual(readModelConfig(c.folder).quantization!.raw);
    },
  );
}

const offsetOf = (state: Uint8Array): number => JSON.parse(new TextDecoder().decode(state)).nested_offset;
