/** A token that might have been drawn, with its natural log-probability at the sampling temperature. */
export interface Alternative {
  readonly id: number;
  readonly logprob: number;
}

/** What logits are multiplied with; the likeliest token is taken of unscaled ones. */
export function inverseTemperature({ temperature }: { readonly temperature: number }): number {
  return temperature === 0 ? 1 : 1 / temperature;
}

/**
 * The likeliest tokens of a row of logits [V] by falling log-probability, the lower id first among equals: logit/T - lse,
 * before top-k, top-p and min-p cut anything off, as the drawn token's log-probability is.
 */
export function likeliest(
  logits: Float32Array,
  sampling: { readonly temperature: number; readonly alternatives?: number },
  lse: number,
): Alternative[] {
  const count = Math.min(sampling.alternatives ?? 0, logits.length);
  const top: number[] = [];
  for (let id = 0; id < logits.length; id++) {
    if (top.length === count && !(logits[id]! > logits[top[count - 1]!]!)) continue;
    if (top.length === count) top.pop();
    let at = top.length;
    while (at > 0 && logits[id]! > logits[top[at - 1]!]!) at--;
    top.splice(at, 0, id);
  }
  const scale = inverseTemperature(sampling);
  return top.map((id) => ({ id, logprob: logits[id]! * scale - lse }));
}
