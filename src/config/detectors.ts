/** The config key `detector`: its forms, and the checks of name and parameters. */
import { parse } from "yaml";
import * as z from "zod";
import { UsageError } from "../core/errors.ts";
import type { DetectorSetting } from "../recipe/settings.ts";
import { bindDetector, DETECTOR_NAMES, detectorNamed } from "../reward/detectors.ts";
import { didYouMean } from "./suggest.ts";

export const detectorSchema = z.strictObject({
  name: z.string().min(1),
  params: z.record(z.string(), z.unknown()),
});

/** NAME or { name, params }; null: none. */
export function readDetector(value: unknown, where: string): DetectorSetting | null {
  if (value === null) return null;
  const given = typeof value === "string" ? { name: value } : value;
  if (typeof given !== "object" || Array.isArray(given))
    throw new UsageError(
      `detector expects a name, given ${JSON.stringify(value)}`,
      where,
      "give {name, params}",
    );
  const { name, params = {}, ...rest } = given as { readonly name?: unknown; readonly params?: unknown };
  if (typeof name !== "string" || name === "")
    throw new UsageError("detector without a name", where, `name one of ${DETECTOR_NAMES.join(", ")}`);
  const unknown = Object.keys(rest)[0];
  if (unknown !== undefined)
    throw new UsageError(
      `detector ${name} has an unknown key ${unknown}`,
      where,
      "its keys are name and params; what the detector itself takes goes under params",
    );
  if (typeof params !== "object" || params === null || Array.isArray(params))
    throw new UsageError(`detector ${name}: params expects names and values`, where);
  if (!DETECTOR_NAMES.includes(name))
    throw new UsageError(
      `unknown detector ${JSON.stringify(name)}`,
      where,
      didYouMean(name, DETECTOR_NAMES, `the detectors are ${DETECTOR_NAMES.join(", ")}`),
    );
  bindDetector(name, params as DetectorSetting["params"]);
  return { name, params: params as DetectorSetting["params"] };
}

/** The flag's detector: a name keeps what a file says of the same one. */
export function flagDetector(raw: string, where: string, file: DetectorSetting | null) {
  if (!raw.trimStart().startsWith("{")) return raw === file?.name ? file : readDetector(raw, where);
  try {
    return readDetector(parse(raw), where);
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError(`detector is not valid YAML (${(error as Error).message.split("\n")[0]})`, where);
  }
}

/** For help: every detector with what it is and its parameters. */
export function detectorHelp(): { readonly name: string; readonly text: string }[] {
  return DETECTOR_NAMES.map((name) => {
    const { description, parameters } = detectorNamed(name);
    const params = Object.entries(parameters.shape).map(([key, type]) => {
      const fallback = (type as z.ZodType).safeParse(undefined);
      return fallback.success ? `${key} ${JSON.stringify(fallback.data)}` : key;
    });
    return { name, text: `${description}. Params: ${params.join(", ")}.` };
  });
}
