/**
 * A rank that adds up gradients of small models with the others. Rank 0 says, as JSON, whether the sums have the bits of
 * the ranks' own gradients, computed once more by themselves and added in TypeScript; and what errors become.
 */
import { mpiLaunch } from "../../src/core/env.ts";
import { bf16ToF32, f32ToBf16 } from "../../src/core/float-formats.ts";
import { Device } from "../../src/device/device.ts";
import { Mpi } from "../../src/device/mpi.ts";
import { parseModelConfig } from "../../src/io/hf-folder.ts";
import { initialiseAdapters } from "../../src/nn/adapters.ts";
import { Transformer, type TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { fill } from "../../src/ops/elementwise.ts";
import { packGroups } from "../../src/rollout/pack.ts";
import { forwardRow } from "../../src/rollout/score.ts";
import { MpiRanks } from "../../src/run/mpi-ranks.ts";
import type { GradientSums } from "../../src/run/ranks.ts";
import { Graph, StepMemory } from "../../src/tape/tape.ts";
import { promptOf, TINY } from "../run/tiny.ts";

const ranks = await MpiRanks.join(Mpi.start(mpiLaunch()), "0");
const found: Record<string, unknown> = {};

// 15 MB of gradients in float32: several buckets of several parameters each.
const config = parseModelConfig(
  { ...TINY.qwen3, hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 4, vocab_size: 1024 },
  "wide",
);

/** `batches` by rank: how many micro-batches each has. */
async function agree(what: string, options: Partial<TransformerOptions>, batches: readonly number[]) {
  const device = Device.open("cpu", 1);
  const memory = new StepMemory(device);
  const model = new Transformer(device, config, {
    ...{ dtype: Dtype.f32, trainable: true, maxPositions: 64 },
    ...options,
  });
  // Any values do, made fast.
  for (const { name, shape, matrix } of model.parameters.list) {
    const n = shape.reduce((a, b) => a * b, 1);
    const values = new Float32Array(n).fill(1);
    if (matrix) for (let i = 0; i < n; i++) values[i] = (Math.imul(i + n, 0x9e3779b1) >> 8) * 2 ** -26;
    model.parameters.load(name, values);
  }
  if (model.adapters) initialiseAdapters(model.adapters, model.parameters, 7);
  const own = batches[ranks.rank]!;
  const add = async (sums: GradientSums | null, until = own) => {
    for (let i = 0; i < until; i++) {
      const microBatch = 10 * ranks.rank + i;
      const g = new Graph(memory, true);
      const group = { prompt: promptOf(20, 1024, microBatch), completions: [promptOf(9, 1024, microBatch)] };
      const { logprob, entropy } = forwardRow(g, model, packGroups([group]), 1, null, {
        ...{ seed: 1, step: 1, microBatch },
      });
      const seed = g.upload(new Float32Array(logprob.size).fill(-1), "seed");
      g.backward([[logprob, seed]], [], i === own - 1 ? sums?.final : undefined);
      g.release(logprob, entropy);
      device.submit();
      await Bun.sleep(0);
    }
    return own;
  };
  const buckets = model.trained.gradientBuckets();
  const pieces = () => buckets.flatMap((bucket) => [...bucket.pieces()]);
  const floats = (bytes: ArrayBuffer, dtype: number) =>
    dtype === Dtype.f32 ? new Float32Array(bytes) : bf16ToF32(new Uint16Array(bytes));
  const kept = () =>
    pieces().map(({ bytes, dtype }) =>
      dtype === Dtype.f32 ? new Float32Array(bytes).slice() : new Uint16Array(bytes).slice(),
    );

  // By themselves, the last rank fails first: nothing of it may show in what follows.
  const broken = await ranks
    .gatherGradients("broken", model.trained, async (sums) => {
      await add(sums, ranks.rank === ranks.count - 1 ? own - 1 : own);
      if (ranks.rank === ranks.count - 1) throw new RangeError("no more");
    })
    .catch((error) => error);
  model.trained.zeroGradients();
  await add(null);
  memory.finish();
  const all = await ranks.gather("own gradients", kept);
  model.trained.zeroGradients();
  const shares = await ranks.gatherGradients("sums", model.trained, add);
  memory.finish();
  let different = 0;
  let nonzero = 0;
  for (const [i, { bytes, dtype }] of pieces().entries()) {
    const [sum, ...others] = all.map((own) => floats(own[i]!.slice().buffer, dtype));
    for (const other of others) for (let at = 0; at < other.length; at++) sum![at]! += other[at]!;
    const want = dtype === Dtype.f32 ? new Uint32Array(sum!.buffer) : f32ToBf16(sum!);
    const got = dtype === Dtype.f32 ? new Uint32Array(bytes) : new Uint16Array(bytes);
    for (let at = 0; at < want.length; at++) {
      if (want[at] !== got[at]) different++;
      if (want[at] !== 0) nonzero++;
    }
  }
  found[what] = {
    ...{ buckets: buckets.length, different, share: nonzero / model.trained.count, shares },
    broken: { message: broken.message, everywhere: ranks.isEverywhere(broken) },
  };
  memory.dispose();
  model.dispose();
  device.close();
}

const bf16 = { dtype: Dtype.bf16, gradientDtype: Dtype.bf16, checkpointing: true };
const lora = { r: 4, alpha: 8, targets: "all-linear", dropout: 0.2 } as const;
await agree("float32", {}, [3, 1]);
await agree("bfloat16", bf16, [1, 2]);
await agree("nothing to do", {}, [0, 2]);
await agree("adapters", { lora }, [1, 2]);

// A device that fails in the middle of a backward pass, on one rank.
const device = Device.open("cpu", 1);
const model = new Transformer(device, config, { dtype: Dtype.f32, trainable: true, maxPositions: 64 });
const thrown = await ranks
  .gatherGradients("a device that fails", model.trained, async (sums) => {
    model.trained.zeroGradients();
    for (const { tensor } of model.trained.list.toReversed()) {
      if (ranks.rank === 1 && tensor.label === "model.norm.weight") {
        const freed = device.buffer(64, "freed");
        const y = freed.range();
        freed.free();
        device.emit(fill, { y, n: 16, value: 1 });
      }
      sums.final!(tensor);
    }
  })
  .catch((error) => error);
found.device = { message: thrown.message, class: thrown.name, everywhere: ranks.isEverywhere(thrown) };
model.dispose();
device.close();

await ranks.leave();
if (ranks.root) process.stdout.write(`${JSON.stringify(found)}\n`);
process.exit(0);
