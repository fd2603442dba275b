/** Edit distance with transpositions of neighbours (Damerau-Levenshtein, optimal string alignment). */
function distance(a: string, b: string): number {
  let before: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let best = Math.min(previous[j]! + 1, current[j - 1]! + 1, previous[j - 1]! + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        best = Math.min(best, before[j - 2]! + 1);
      current.push(best);
    }
    before = previous;
    previous = current;
  }
  return previous[b.length]!;
}

/** The known name nearest to what was typed, if it is near enough to be meant. */
export function nearest(typedName: string, known: readonly string[]): string | undefined {
  const name = typedName.toLowerCase();
  const limit = Math.max(1, Math.floor(name.length / 3));
  let best: string | undefined;
  let least = limit + 1;
  for (const candidate of known) {
    const cost = distance(name, candidate);
    if (cost < least) {
      least = cost;
      best = candidate;
    }
  }
  if (best !== undefined) return best;
  // A long name half remembered: `steps` for `num_train_steps`.
  const containing = known.filter((candidate) => name.length >= 4 && candidate.includes(name));
  return containing.sort((a, b) => a.length - b.length)[0];
}

/** `did you mean X?`, or where to find the names. */
export function didYouMean(name: string, known: readonly string[], otherwise: string, prefix = ""): string {
  const guess = nearest(name, known);
  return guess === undefined ? otherwise : `did you mean ${prefix}${guess}?`;
}
