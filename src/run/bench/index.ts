/** `rlv bench`: speed of whole jobs and of single operations, each beside what this machine could do at most. */
import type { BenchName, BenchOptions } from "../../config/schema-inference.ts";
import { metalModel } from "../metal-model/model.ts";
import type { Context, Result } from "./context.ts";
import { growth } from "./growth.ts";
import { grpo } from "./grpo.ts";
import { decode, prefill } from "./inference.ts";
import { judge } from "./judge.ts";
import { logprob } from "./logprob.ts";
import { ops } from "./ops.ts";
import { startup } from "./startup.ts";
import { rm, train } from "./training.ts";

const BENCHES: {
  readonly [Name in BenchName]: (options: BenchOptions<Name>, context: Context) => Promise<Result>;
} = {
  grpo,
  decode,
  prefill,
  logprob,
  train,
  rm,
  judge,
  ops,
  growth,
  startup,
  "metal-model": async (options, context) => ({
    name: "metal-model",
    ...metalModel(options, context.talk),
  }),
};

export async function runBench<Name extends BenchName>(
  name: Name,
  options: BenchOptions<Name>,
  context: Context,
): Promise<Result> {
  const bench = BENCHES[name] as (options: BenchOptions<Name>, context: Context) => Promise<Result>;
  return bench(options, context);
}
