/** Words and sentences as rewards and detectors count them. */
import type { Rollout } from "../core/records.ts";

/** Lower-case words: letters and digits, with apostrophes and hyphens inside. */
export function wordsOf(text: string): string[] {
  return text.toLowerCase().match(/[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*/gu) ?? [];
}

export function countWord(text: string, word: string): number {
  const wanted = word.toLowerCase();
  return wordsOf(text).filter((each) => each === wanted).length;
}

/** Runs of `size` words that stand directly behind the same run: "very very" for 1, "he ran he ran" for 2. */
export function repetitions(text: string, size = 1): number {
  const words = wordsOf(text);
  let count = 0;
  for (let i = size; i + size <= words.length; i++)
    if (words.slice(i, i + size).every((word, j) => word === words[i - size + j])) count++;
  return count;
}

/** Sentences by their marks, those without a word left out. */
export function sentencesOf(text: string): string[] {
  return text.split(/[.!?]+/u).filter((sentence) => wordsOf(sentence).length > 0);
}

/**
 * Sentences of a completion. The first one begins in the prompt where the prompt leaves it open; one that the length
 * limit cut off has no length yet and is none.
 */
export function completionSentences({ prompt, text, finish }: Rollout): string[] {
  const open = /[^.!?]*$/u.exec(prompt.text)![0];
  const begun = wordsOf(open).length > 0 ? `${open} ${text}` : text;
  const cut =
    finish === "length"
      ? begun.slice(0, Math.max(...[".", "!", "?"].map((c) => begun.lastIndexOf(c))) + 1)
      : begun;
  return sentencesOf(cut);
}
