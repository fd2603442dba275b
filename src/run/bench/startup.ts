import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BenchOptions } from "../../config/schema-inference.ts";
import { assert } from "../../core/errors.ts";
import { writeModelFolder } from "../../io/hf-folder.ts";
import { Dtype } from "../../ops/define.ts";
import { openModel } from "../open-model.ts";
import { Bench, type Context, median, type Result } from "./context.ts";

/** Start of the program, and loading a model folder of the shape up to usable weights. */
export async function startup(options: BenchOptions<"startup">, context: Context): Promise<Result> {
  using bench = new Bench("startup", options, context.talk);
  const { shape } = options;
  const versions: number[] = [];
  for (let i = 0; i <= options.steps; i++) {
    const begin = performance.now();
    const child = Bun.spawnSync([...context.program, "version"]);
    assert(child.exitCode === 0, "version failed");
    if (i > 0) versions.push(performance.now() - begin);
  }
  const folder = mkdtempSync(join(tmpdir(), "rlv-bench-"));
  try {
    const model = bench.model(shape, 8, { trainable: false });
    const bf16 = options.dtype === "bfloat16";
    writeModelFolder(
      folder,
      { ...model.config, dtype: options.dtype },
      model.parameters.list.map((p) => ({
        name: p.name,
        shape: p.shape,
        dtype: bf16 ? "BF16" : "F32",
        data: () => new Uint8Array(p.shape.reduce((a, b) => a * b, 1) * (bf16 ? 2 : 4)),
      })),
      [],
    );
    writeFileSync(join(folder, "generation_config.json"), "{}");
    const bytes = bench.elementBytes * model.parameters.count;
    model.dispose();
    const loads = await bench.repeat(() => {
      const code = bf16 ? Dtype.bf16 : Dtype.f32;
      openModel(folder, bench.device, { dtype: code, trainable: false, maxPositions: 8 }).dispose();
    });
    return bench.result(shape, { version_ms: median(versions), load_ms: median(loads) * 1000 }, [
      { name: "load", seconds: loads, work: [{ flops: 0, bytes }] },
    ]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
