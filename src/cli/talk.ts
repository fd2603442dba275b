import type { InferenceSummary } from "../config/contracts.ts";

/** A line for a person, on stderr. */
export function talk(line: string): void {
  process.stderr.write(`${line}\n`);
}

export function summaryLine(verb: string, summary: InferenceSummary): string {
  const rate = summary.seconds > 0 ? `, ${Math.round(summary.tokens / summary.seconds)} tokens/s` : "";
  return (
    `${verb} ${summary.completions} completions of ${summary.prompts} prompts ` +
    `(${summary.tokens} tokens, ${summary.seconds.toFixed(2)} s${rate}): ${summary.out}`
  );
}
