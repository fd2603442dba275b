/** Device memory that kernels move at the shape of Qwen3-0.6B, counted, beside the least their tiles need. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { Dtype } from "../../src/ops/define.ts";
import { catalogue } from "../../src/ops/index.ts";
import { Counter, type KernelCounts } from "../../src/run/metal-model/counts.ts";
import { least } from "../../src/run/metal-model/least.ts";
import { capture, type Repeated } from "../../src/run/metal-model/workload.ts";

const library = resolve(import.meta.dir, "../../build/librlv-soft.so");
const MOST = 1.25;
/** Of a dispatch that moves less, alignment and records are a part that means nothing. */
const SMALL = 50_000;

const phases = capture({
  shape: "qwen3-0.6b",
  dtype: Dtype.bf16,
  ...{ completions: 8, group: 8, prompt: 128, completion: 64 },
});

const described = ({ op, params }: Repeated) =>
  `${op.name} ${Object.entries(params)
    .filter(([name]) => !["dt", "ydt", "wdt", "gdt", "mdt", "eps", "seed"].includes(name))
    .map(([name, value]) => `${name}=${value}`)
    .join(" ")}`;

describe.skipIf(!existsSync(library))("traffic of kernels (scripts/build-native --soft)", () => {
  const counter = existsSync(library) ? new Counter() : null;
  afterAll(() => counter?.close());
  const moved = (kernels: readonly KernelCounts[]) =>
    kernels.reduce((sum, k) => sum + k.loaded_bytes + k.stored_bytes, 0);

  const seen = new Set<string>();
  for (const { name, operations } of phases)
    for (const operation of operations) {
      const title = described(operation);
      if (seen.has(title)) continue;
      seen.add(title);
      test(`${name}: ${title}`, () => {
        const kernels = counter!.count(operation);
        const bytes = moved(kernels);
        const { once, tiled } = least(operation);
        expect(tiled).toBeGreaterThanOrEqual(once);
        if (bytes < SMALL) return;
        expect(bytes / tiled).toBeLessThanOrEqual(MOST);
        // A minimum that is not reached, or not needed, would hide the rest.
        expect(bytes / tiled).toBeGreaterThan(0.95);
        for (const k of kernels) expect(k.threadgroup_memory).toBeLessThanOrEqual(32768);
      });
    }

  test("a GRPO step covers the catalogue", () => {
    const used = new Set(phases.flatMap(({ operations }) => operations.map(({ op }) => op.name)));
    const unused = catalogue.map(({ op }) => op.name).filter((name) => !used.has(name));
    // Copies of pages and weights, biases, adapters, quantized weights, and what other jobs use.
    expect(unused.sort()).toEqual([
      "bias_bwd",
      "cast",
      "copy",
      "dequantize_weight",
      "dropout",
      "fill",
      "kv_copy",
      "lora_bwd",
      "lora_fwd",
      "pack_weight",
      "quant_embed",
      "quant_linear",
      "quant_linear_bwd",
      "quantize_weight",
      "unpack_weight",
    ]);
  });

  test("matrix products are counted: 2mnk FLOPs", () => {
    const product = phases
      .flatMap(({ operations }) => operations)
      .find(({ op, params }) => op.name === "gemm_nt" && params.m! >= 512 && params.m! % 8 === 0)!;
    const { m, n, k } = product.params as { m: number; n: number; k: number };
    const [kernel] = counter!.count(product);
    const flops = kernel!.matrix_ops * 2 * 8 ** 3;
    expect(flops).toBeGreaterThanOrEqual(2 * m * n * k);
    expect(flops).toBeLessThanOrEqual(1.05 * 2 * Math.ceil(m / 64) * 64 * n * k);
  });
});
