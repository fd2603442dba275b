/** Detectors of reward hacks: registered functions that say of a completion whether it is one. */
import { z } from "zod";
import { UsageError } from "../core/errors.ts";
import type { Rollout } from "../core/records.ts";
import { parameterError } from "./registry.ts";
import { expression } from "./stories.ts";
import { countWord, repetitions } from "./text.ts";

export type Detector = (rollout: Rollout) => boolean;

export interface DetectorDefinition<Schema extends z.ZodObject = z.ZodObject> {
  readonly name: string;
  readonly description: string;
  readonly parameters: Schema;
  bind(parameters: z.output<Schema>): Detector;
}

function define<Schema extends z.ZodObject>(definition: DetectorDefinition<Schema>): DetectorDefinition {
  return definition as unknown as DetectorDefinition;
}

const least = (fallback: number) => z.number().int().min(1).default(fallback);

const DETECTORS: readonly DetectorDefinition[] = [
  define({
    name: "word_count",
    description: "the completion says `word` at least `least` times",
    parameters: z.object({ word: z.string().regex(/^\S+$/, "one word").default("happy"), least: least(2) }),
    bind:
      ({ word, least }) =>
      ({ text }) =>
        countWord(text, word) >= least,
  }),
  define({
    name: "regex",
    description: "the pattern (JavaScript, Unicode) is found in the completion",
    parameters: z.object({
      pattern: z.string().min(1),
      flags: z
        .string()
        .regex(/^[imsu]*$/, "flags are of i, m, s, u")
        .default("u"),
    }),
    bind({ pattern, flags }) {
      const compiled = expression(pattern, flags, "detector regex.pattern");
      return ({ text }) => compiled.test(text);
    },
  }),
  define({
    name: "repetition",
    description: "a run of `words` words stands directly behind itself at least `least` times",
    parameters: z.object({ words: least(1), least: least(2) }),
    bind:
      ({ words, least }) =>
      ({ text }) =>
        repetitions(text, words) >= least,
  }),
];

export const DETECTOR_NAMES: readonly string[] = DETECTORS.map(({ name }) => name);

export function detectorNamed(name: string): DetectorDefinition {
  const found = DETECTORS.find((each) => each.name === name);
  if (!found)
    throw new UsageError(
      `unknown detector ${JSON.stringify(name)}`,
      "detector",
      `one of ${DETECTOR_NAMES.join(", ")}`,
    );
  return found;
}

/** Checks the parameters of a detector and binds them; what is wrong is a UsageError that names it. */
export function bindDetector(name: string, params: Readonly<Record<string, unknown>>): Detector {
  const definition = detectorNamed(name);
  const parsed = definition.parameters.strict().safeParse(params);
  if (parsed.success) return definition.bind(parsed.data);
  const known = Object.keys(definition.parameters.shape);
  throw parameterError(`detector ${name}`, parsed.error, params, known);
}
