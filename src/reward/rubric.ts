/** A rubric: what a judge is asked about a response, in which words, and what its answers count. */
import { readFileSync } from "node:fs";
import { parseDocument } from "yaml";
import * as z from "zod";
import { UsageError } from "../core/errors.ts";

/** Values that a judge may answer; each is one digit, so that it is one token of any tokenizer. */
export interface Scale {
  readonly min: number;
  readonly max: number;
}

export interface Criterion {
  /** As metrics and details call it. */
  readonly name: string;
  /** As the judge reads it. */
  readonly title: string;
  readonly description: string;
  /** Share in the reward, relative to the other criteria's. */
  readonly weight: number;
  /** What each value of the scale means, from the lowest. */
  readonly anchors: readonly string[];
}

/** Texts with {placeholders}, in the order in which the judge reads them. */
export interface JudgeTemplate {
  /** The same for every response: {criteria}, {min}, {max}. */
  readonly preamble: string;
  /** One entry of {criteria}: {name}, {title}, {description}, {anchors}. */
  readonly criterion: string;
  /** {prompt}, then {response}. */
  readonly conversation: string;
  /** The end of the message to the judge: {name}, {title}, {description}, {min}, {max}. */
  readonly question: string;
  /** How the judge's answer begins, with the same placeholders; it goes on with its score. */
  readonly answer: string;
}

export interface Rubric {
  readonly scale: Scale;
  readonly criteria: readonly Criterion[];
  readonly template: JudgeTemplate;
}

const digit = (word: string) => z.number().int(`${word} is a whole number`).min(0).max(9);

const schema = z
  .strictObject({
    scale: z.strictObject({ min: digit("min"), max: digit("max") }).default({ min: 1, max: 5 }),
    criteria: z
      .array(
        z.strictObject({
          name: z.string().regex(/^[a-z][a-z0-9_]*$/, "a name is of lower-case letters, digits and _"),
          title: z.string().min(1).optional(),
          description: z.string().min(1),
          weight: z.number().positive().default(1),
          anchors: z.record(z.string(), z.string().min(1)),
        }),
      )
      .min(1, "a rubric needs a criterion"),
    template: z.strictObject({
      preamble: z.string().min(1),
      criterion: z.string().min(1),
      conversation: z.string().min(1),
      question: z.string(),
      answer: z.string().default(""),
    }),
  })
  .superRefine(({ scale, criteria, template }, context) => {
    const refuse = (path: (string | number)[], message: string) =>
      context.addIssue({ code: "custom", path, message });
    if (scale.max <= scale.min) refuse(["scale", "max"], `max ${scale.max} must exceed min ${scale.min}`);
    const names = criteria.map(({ name }) => name);
    for (const [i, { name, anchors }] of criteria.entries()) {
      if (names.indexOf(name) !== i) refuse(["criteria", i, "name"], `two criteria are called ${name}`);
      for (const value of valuesOf(scale))
        if (!(value in anchors))
          refuse(["criteria", i, "anchors"], `says nothing for ${value} of ${scale.min} to ${scale.max}`);
      for (const key of Object.keys(anchors))
        if (!valuesOf(scale).map(String).includes(key))
          refuse(["criteria", i, "anchors", key], `is outside the scale ${scale.min} to ${scale.max}`);
    }
    for (const [part, allowed] of Object.entries(PLACEHOLDERS)) {
      for (const used of placeholdersOf(template[part as keyof JudgeTemplate]))
        if (!allowed.includes(used))
          refuse(["template", part], `has no {${used}}: placeholders are ${braced(allowed)}`);
    }
    if (!placeholdersOf(template.preamble).includes("criteria"))
      refuse(["template", "preamble"], "needs {criteria}");
    const said = placeholdersOf(template.conversation).join(" ");
    if (said !== "prompt response")
      refuse(["template", "conversation"], "needs {prompt} and behind it {response}, each once");
    const asks = placeholdersOf(template.question + template.answer);
    if (criteria.length > 1 && !asks.some((used) => ["name", "title", "description"].includes(used)))
      refuse(["template", "question"], "question or answer must name the criterion: {name} or {title}");
  });

const ABOUT = ["name", "title", "description", "min", "max"];
const PLACEHOLDERS: Readonly<Record<keyof JudgeTemplate, readonly string[]>> = {
  preamble: ["criteria", "min", "max"],
  criterion: ["name", "title", "description", "anchors"],
  conversation: ["prompt", "response"],
  question: ABOUT,
  answer: ABOUT,
};

const braced = (names: readonly string[]): string => names.map((name) => `{${name}}`).join(", ");
const PLACEHOLDER = /\{([a-z_]+)\}/g;

function placeholdersOf(text: string): string[] {
  return [...text.matchAll(PLACEHOLDER)].map((match) => match[1]!);
}

/** A template's text with its placeholders filled in; what is filled in is not looked at again. */
export function fill(text: string, values: Readonly<Record<string, string | number>>): string {
  return text.replace(PLACEHOLDER, (whole, name: string) => String(values[name] ?? whole));
}

/** Every value of a scale, from the lowest. */
export function valuesOf({ min, max }: Scale): number[] {
  return Array.from({ length: Math.max(0, max - min + 1) }, (_, i) => min + i);
}

/** Reads a rubric from YAML text; `path` is what errors call it. */
export function parseRubric(text: string, path: string): Rubric {
  const document = parseDocument(text, { version: "1.2", uniqueKeys: true, logLevel: "silent" });
  const problem = document.errors[0] ?? document.warnings[0];
  if (problem !== undefined)
    throw new UsageError(
      `not valid YAML (${problem.message.split("\n")[0]})`,
      path,
      "mend the rubric at that line",
    );
  const outcome = schema.safeParse(document.toJS());
  if (!outcome.success) {
    const issue = outcome.error.issues[0]!;
    const key = issue.path
      .map((part) => (typeof part === "number" ? `[${part}]` : `.${String(part)}`))
      .join("");
    const name = key.replace(/^\./, "") || "the rubric";
    throw new UsageError(
      `rubric: ${name}: ${issue.message}`,
      path,
      "a rubric has scale, criteria and template as in rlv's own (src/recipe/values/rubric.yaml)",
    );
  }
  const { scale, criteria, template } = outcome.data;
  return {
    scale,
    criteria: criteria.map(({ anchors, title, ...rest }) => ({
      ...rest,
      title: title ?? rest.name.replaceAll("_", " "),
      anchors: valuesOf(scale).map((value) => anchors[String(value)]!),
    })),
    template,
  };
}

export function readRubric(path: string): Rubric {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(path));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why = code === undefined ? "is not UTF-8 text" : `cannot be read (${code})`;
    throw new UsageError(`the rubric ${why}`, path, "give a YAML file with criteria and a template");
  }
  return parseRubric(text, path);
}

/** What the judge reads before any response. */
export function preambleText({ scale, criteria, template }: Rubric): string {
  const listed = criteria.map((criterion) => fill(template.criterion, about(criterion, scale))).join("\n");
  return fill(template.preamble, { ...scale, criteria: listed });
}

/** What stands for a criterion in the judge's template. */
export function about(criterion: Criterion, scale: Scale): Readonly<Record<string, string | number>> {
  const { name, title, description } = criterion;
  const anchors = criterion.anchors.map((anchor, i) => `${scale.min + i} = ${anchor}`).join("; ");
  return { name, title, description, anchors, ...scale };
}

/** The same rubric, its criteria listed in another order: `order[i]` is the one that comes at place i. */
export function reordered(rubric: Rubric, order: readonly number[]): Rubric {
  return { ...rubric, criteria: order.map((i) => rubric.criteria[i]!) };
}

/** Scores by criterion as one number in [0, 1], with each criterion's share of it; null if one is missing. */
export function rubricReward(
  { scale, criteria }: Rubric,
  scores: Readonly<Record<string, number | null>>,
): { readonly reward: number | null; readonly components: Readonly<Record<string, number>> } {
  const total = criteria.reduce((sum, { weight }) => sum + weight, 0);
  const components: Record<string, number> = {};
  let reward: number | null = 0;
  for (const { name, weight } of criteria) {
    const score = scores[name] ?? null;
    if (score === null) {
      reward = null;
      continue;
    }
    components[name] = (weight / total) * ((score - scale.min) / (scale.max - scale.min));
    if (reward !== null) reward += components[name];
  }
  return { reward, components };
}
