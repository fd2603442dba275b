import { VERSION } from "../core/version.ts";
import { fieldsOf } from "./fields.ts";
import { RECIPES, type ResolvedConfig } from "./recipes.ts";

/** Keys that say where a run is kept or on how many threads it runs: they change no bit of its result. */
const PLACE_KEYS = ["output_dir", "run_name", "log_dir", "threads"];

/**
 * train_config.json of a run: every key, resolved. Numbers with a fraction keep it in every reader: 1 is written
 * 1.0 and 1e-7 is written 1.0e-07, which JSON, YAML 1.1 and YAML 1.2 all read as a float.
 */
export function configText(config: ResolvedConfig): string {
  const lines = [
    `  "rlv_version": ${JSON.stringify(VERSION)}`,
    `  "recipe": ${JSON.stringify(config.recipe)}`,
  ];
  for (const info of fieldsOf(RECIPES[config.recipe].schema)) {
    const value = (config as unknown as Record<string, unknown>)[info.name];
    const written =
      info.kind === "number" && typeof value === "number" ? floatText(value) : JSON.stringify(value);
    lines.push(`  ${JSON.stringify(info.name)}: ${written}`);
  }
  return `{\n${lines.join(",\n")}\n}\n`;
}

/**
 * train_config.json of a checkpoint: as configText, without the keys of place, so that two runs of one config
 * write the same bytes wherever they are kept.
 */
export function checkpointConfigText(config: ResolvedConfig): string {
  const lines = configText(config).split("\n");
  const kept = lines.filter((line) => !PLACE_KEYS.some((key) => line.startsWith(`  "${key}":`)));
  return kept.join("\n").replace(/,\n}/, "\n}");
}

/** The shortest text that reads back as the same double and is a float in JSON, YAML 1.1 and YAML 1.2. */
export function floatText(value: number): string {
  if (!Number.isFinite(value)) throw new RangeError(`a config cannot hold ${value}`);
  const text = String(value);
  const [mantissa, exponent] = text.split("e") as [string, string | undefined];
  const whole = mantissa.includes(".") ? mantissa : `${mantissa}.0`;
  if (exponent === undefined) return whole;
  const sign = exponent.startsWith("-") ? "-" : "+";
  return `${whole}e${sign}${exponent.replace(/^[+-]/, "").padStart(2, "0")}`;
}
