/** How a GRPO step's time grows with each of its sizes, what sharing the prompt is worth, and a second thread. */
import type { BenchOptions } from "../../config/schema-inference.ts";
import { DeviceError } from "../../core/errors.ts";
import { Bench, type Context, median, type Result } from "./context.ts";
import { GrpoSubject, type GrpoWork } from "./grpo.ts";

const GROUPS = [4, 8, 16, 32];
const PROMPTS = [64, 128, 256, 512, 1024];
const COMPLETIONS = [32, 64, 128, 256];
const LONG: Pick<GrpoWork, "prompt" | "completion" | "group"> = { prompt: 1024, completion: 64, group: 16 };
/** A child process that has not ended after this is not waited for. */
const CHILD_SECONDS = 3600;

/** One step's seconds in a process of its own with so many threads. */
function withThreads(options: BenchOptions<"growth">, program: readonly string[], threads: number): number {
  const flags = {
    ...{ shape: options.shape, prompt: options.prompt, completion: options.completion },
    ...{ group: options.group, completions: options.group, beta: options.beta, steps: options.steps },
    micro_batch_tokens: options.micro_batch_tokens,
    ...{ device: options.device, dtype: options.dtype, seed: options.seed, threads },
  };
  const child = Bun.spawnSync(
    [
      ...program,
      ...["bench", "grpo", "--json"],
      ...Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]),
    ],
    { stderr: "pipe", timeout: CHILD_SECONDS * 1000 },
  );
  if (child.exitCode !== 0) {
    const last = child.stderr.toString().trim().split("\n").at(-1);
    throw new DeviceError(`bench grpo with ${threads} threads ended with ${child.exitCode}: ${last}`);
  }
  return JSON.parse(child.stdout.toString()).step_s;
}

export async function growth(options: BenchOptions<"growth">, context: Context): Promise<Result> {
  using bench = new Bench("growth", options, context.talk);
  const { shape, prompt, completion, group, beta } = options;
  const longest = Math.max(prompt, ...PROMPTS) + Math.max(completion, ...COMPLETIONS);
  const subject = new GrpoSubject(bench, shape, longest, { beta, checkpointing: false });
  const costs = bench.costs(shape);
  const base = { prompt, completion, group };
  const measured = new Map<string, { readonly step_s: number; readonly fraction_of_limit: number }>();
  const phasesOf = async (sizes: typeof base, share_prefix = true) => {
    const key = `prompt ${sizes.prompt} completion ${sizes.completion} group ${sizes.group} shared ${share_prefix}`;
    const known = measured.get(key);
    if (known) return known;
    const { micro_batch_tokens } = options;
    const work: GrpoWork = { ...sizes, completions: sizes.group, beta, share_prefix, micro_batch_tokens };
    const { phases, steps } = await subject.measure(work, costs, key);
    const step_s = median(steps);
    const least = phases.reduce((sum, phase) => sum + (bench.phase(phase).least_s as number), 0);
    const point = { step_s, fraction_of_limit: least / step_s };
    measured.set(key, point);
    return point;
  };
  const curve = async (name: keyof typeof base, values: readonly number[]) => {
    const points = [];
    for (const value of values)
      points.push({ [name]: value, ...(await phasesOf({ ...base, [name]: value })) });
    return points;
  };
  const by_group = await curve("group", GROUPS);
  const by_prompt = await curve("prompt", PROMPTS);
  const by_completion = await curve("completion", COMPLETIONS);
  const shared = await phasesOf(LONG);
  const unshared = await phasesOf(LONG, false);
  const result = bench.result(
    shape,
    {
      ...{ ...base, beta, by_group, by_prompt, by_completion },
      share_prefix: {
        ...LONG,
        shared_s: shared.step_s,
        unshared_s: unshared.step_s,
        ratio: unshared.step_s / shared.step_s,
      },
    },
    [],
    1,
  );
  subject.dispose();
  const [one, two] = [1, 2].map((threads) => withThreads(options, context.program, threads)) as [
    number,
    number,
  ];
  return {
    ...result,
    threads_scaling: { one_s: one, two_s: two, ratio: one / two },
    fraction_of_limit: (await phasesOf(base)).fraction_of_limit,
  };
}
