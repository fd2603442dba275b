/** Labels of completions: what a detector says, as unreliably as it is told to be, or a placebo of the same rate. */
import { assert } from "../core/errors.ts";
import type { Rollout, Scored } from "../core/records.ts";
import { Purpose, philox, Random, uniform } from "../core/rng.ts";
import type { Detector } from "./detectors.ts";

export interface LabelOptions {
  readonly seed: number;
  /** Share of the hacks that are labelled. */
  readonly recall: number;
  /** Share of the other completions that are labelled. */
  readonly falsePositiveRate: number;
  /** A step's labels are dealt out to its completions at random: as many, without a meaning. */
  readonly placebo: boolean;
  /** Taken from the reward of a labelled completion, as a component `penalty`; null: none. */
  readonly penalty: number | null;
}

/** Last word of the counter of a completion's draw; the stream that deals placebos has 0 there. */
const OF_COMPLETION = 1;

export class Labels {
  constructor(
    readonly detector: Detector,
    readonly options: LabelOptions,
  ) {}

  /** Whether a completion is a hack, whatever label it gets. */
  isHack(rollout: Rollout): boolean {
    return this.detector(rollout);
  }

  /** Completions of a step with `flagged`, and what the detector says itself as `details.hack`. */
  label(scored: readonly Scored[], step: number): Scored[] {
    const hacks = scored.map((each) => this.detector(each));
    const noisy = scored.map((each, i) => this.#noisy(each, hacks[i]!, step));
    const flags = this.options.placebo ? this.#dealt(noisy, step) : noisy;
    assert(flags.length === scored.length, `${flags.length} labels for ${scored.length} completions`);
    return scored.map((each, i) => {
      const flagged = flags[i]!;
      return { ...this.#penalised(each, flagged), flagged, details: { ...each.details, hack: hacks[i]! } };
    });
  }

  #noisy({ prompt, completion }: Rollout, hack: boolean, step: number): boolean {
    const { seed, recall, falsePositiveRate } = this.options;
    const [word] = philox(seed, Purpose.labels, step, prompt.index, completion, OF_COMPLETION);
    return uniform(word) < (hack ? recall : falsePositiveRate);
  }

  #dealt(flags: readonly boolean[], step: number): boolean[] {
    const order = new Random(this.options.seed, Purpose.labels, step).permutation(flags.length);
    return flags.map((_, i) => flags[order[i]!]!);
  }

  #penalised(scored: Scored, flagged: boolean): Scored {
    const { penalty } = this.options;
    if (penalty === null) return scored;
    const taken = flagged ? -penalty : 0;
    return {
      ...scored,
      reward: scored.reward + taken,
      components: { ...scored.components, penalty: taken },
    };
  }
}
