import { figure, percent } from "./format.ts";

/** What a rubric judge leaves in a rollout's details. */
export interface Judge {
  readonly model: string;
  readonly criteria: Readonly<Record<string, JudgeCriterion>>;
}

interface JudgeCriterion {
  /** The score that the judge wrote; null where its answer was none. */
  readonly text: number | null;
  /** Mean of the scale's values under the judge's probabilities. */
  readonly expected: number;
  /** Of the scale's values, in order. */
  readonly probabilities: readonly number[];
}

/** null where a run's details have no judge, or not in this form. */
export function judgeOf(details: Readonly<Record<string, unknown>> | null): Judge | null {
  const judge = details?.judge as Partial<Judge> | null | undefined;
  if (typeof judge !== "object" || judge === null || typeof judge.criteria !== "object") return null;
  const criteria = Object.entries(judge.criteria ?? {}).filter(
    ([, each]) => Array.isArray(each?.probabilities) && typeof each.expected === "number",
  );
  return criteria.length === 0
    ? null
    : { model: String(judge.model ?? ""), criteria: Object.fromEntries(criteria) };
}

export function JudgeScores({ judge }: { judge: Judge }) {
  return (
    <div class="judge">
      <p class="muted">
        Judge <b>{judge.model || "of this run"}</b>: its answer, and the score expected from its probabilities
      </p>
      <div class="criteria">
        {Object.entries(judge.criteria).map(([name, { text, expected, probabilities }]) => (
          <section key={name} class="criterion">
            <header>
              <h3>{name.replaceAll("_", " ")}</h3>
              <span class={text === null ? "tag warn" : "tag"}>
                {text === null ? "no score" : `says ${text}`}
              </span>
              <b class="num">{figure(expected, 3)}</b>
            </header>
            <Distribution values={probabilities} said={text} />
          </section>
        ))}
      </div>
    </div>
  );
}

/** A bar for each value of the scale. */
export function Distribution({ values, said = null }: { values: readonly number[]; said?: number | null }) {
  // Half of the height at least for half of the probability: flat ones look flat.
  const most = Math.max(0.6, ...values);
  return (
    <div
      class="distribution"
      role="img"
      aria-label={values.map((value, index) => `${index + 1}: ${percent(value)}`).join(", ")}
    >
      {values.map((value, index) => (
        <span
          key={index}
          class={said === index + 1 ? "said" : ""}
          title={`${index + 1}: ${percent(value, 1)}`}
        >
          <i style={{ height: `${((100 * value) / most).toFixed(1)}%` }} />
          <small>{index + 1}</small>
        </span>
      ))}
    </div>
  );
}
