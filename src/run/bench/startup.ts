import type { BenchOptions } from "../../config/schema-inference.ts";
import { assert } from "../../core/errors.ts";
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
  const model = bench.model(shape, 8, { trainable: false });
  const folder = bench.folder(model);
  const bytes = bench.elementBytes * model.parameters.count;
  const { dtype } = model.options;
  model.dispose();
  const loads = await bench.repeat(() => {
    openModel(folder, bench.device, { dtype, trainable: false, maxPositions: 8 }).dispose();
  });
  return bench.result(shape, { version_ms: median(versions), load_ms: median(loads) * 1000 }, [
    { name: "load", seconds: loads, work: [{ flops: 0, bytes }] },
  ]);
}
