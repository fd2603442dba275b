import type { EvaluationReport, FreshCompletions, JudgeExamination } from "../api.ts";
import { count, figure, percent, signed } from "./format.ts";
import { Figure, Finding } from "./parts.tsx";
import { Visible } from "./tokens.tsx";

/** What `rlv eval` says of a checkpoint: its fresh completions, and what its judge is worth. */
export function EvaluationView({ report: { fresh, note, kl, judge } }: { report: EvaluationReport }) {
  return (
    <div class="evaluation stack">
      {note === null ? null : <p class="muted">{note}</p>}
      {fresh === null ? null : <Fresh fresh={fresh} kl={kl} />}
      {judge === null ? null : <JudgeWorth judge={judge} />}
      {fresh === null || fresh.samples.length === 0 ? null : <Samples samples={fresh.samples} />}
    </div>
  );
}

function Fresh({ fresh, kl }: { fresh: FreshCompletions; kl: number | null }) {
  const { reward, components, diversity } = fresh;
  const parts = Object.entries(components);
  return (
    <>
      {diversity.degenerate ? (
        <Finding level="bad" title="The completions have collapsed">
          <p>{diversity.reasons.join("; ")}</p>
          {diversity.template === null ? null : (
            <p>
              <Visible text={diversity.template} />
            </p>
          )}
        </Finding>
      ) : null}
      <dl class="figures">
        {reward === null ? null : (
          <Figure name="reward" value={figure(reward.mean)}>
            <small>
              ± {figure(reward.std, 3)}, from {figure(reward.min, 3)} to {figure(reward.max, 3)}
            </small>
          </Figure>
        )}
        {fresh.best_of_n === null ? null : (
          <Figure name="best of a prompt" value={figure(fresh.best_of_n)}>
            <small>mean of the greatest reward</small>
          </Figure>
        )}
        {parts.length < 2
          ? null
          : parts.map(([name, value]) => (
              <Figure key={name} name={name} value={figure(value)}>
                <small>component</small>
              </Figure>
            ))}
        {fresh.flagged_share === null ? null : (
          <Figure name="flagged" value={percent(fresh.flagged_share)}>
            <small>by a detector of reward hacks</small>
          </Figure>
        )}
        <Figure name="completions" value={count(fresh.completions)}>
          <small>fresh, of {count(fresh.prompts)} prompts</small>
        </Figure>
        <Figure name="length" value={figure(fresh.mean_tokens, 3)}>
          <small>tokens; {percent(fresh.eos_share)} end by themselves</small>
        </Figure>
        <Figure name="different" value={percent(diversity.unique_share)}>
          <small>two share {percent(diversity.jaccard)} of their words</small>
        </Figure>
        <Figure name="one template" value={percent(diversity.template_share)}>
          <small>completions that follow a common one</small>
        </Figure>
        {kl === null ? null : (
          <Figure name="KL" value={figure(kl, 3)}>
            <small>from the reference, last recorded</small>
          </Figure>
        )}
      </dl>
    </>
  );
}

/** To a thousandth of a score. */
const shift = (value: number): string => signed(Math.round(1000 * value) / 1000);

const correlation = (value: number | null): string => (value === null ? "–" : signed(value, 2));

function JudgeWorth({ judge: { model, responses, criteria, position } }: { judge: JudgeExamination }) {
  return (
    <section class="stack" aria-label="Judge">
      <h3>
        Judge {model}, {count(responses)} responses
      </h3>
      <div class="scroll">
        <table>
          <thead>
            <tr>
              <th>Criterion</th>
              <th class="num">Expected</th>
              <th class="num">Says</th>
              <th class="num">No score</th>
              <th class="num" title="text answers that say the expected score, rounded">
                Readings agree
              </th>
              <th class="num" title="correlation of the two readings over responses">
                Correlation
              </th>
              <th class="num" title="correlation of the expected score with the response's length">
                With length
              </th>
            </tr>
          </thead>
          <tbody>
            {criteria.map((each) => (
              <tr key={each.name}>
                <td>{each.name.replaceAll("_", " ")}</td>
                <td class="num">{figure(each.mean_expected, 3)}</td>
                <td class="num">{figure(each.mean_text, 3)}</td>
                <td class="num">{percent(each.invalid_rate)}</td>
                <td class="num">{each.exact_agreement === null ? "–" : percent(each.exact_agreement)}</td>
                <td class="num">{correlation(each.correlation)}</td>
                <td class="num">{correlation(each.length_correlation)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {position === null ? null : (
        <p>
          Order of the criteria: {count(position.responses)} responses judged in {position.orders} orders.
          Scores move by {position.shift_by_position.map(shift).join(", ")} from the first place to the last;
          those of one response lie {figure(position.mean_spread, 2)} apart, at most{" "}
          {figure(position.largest_spread, 2)}.
        </p>
      )}
    </section>
  );
}

function Samples({ samples }: Pick<FreshCompletions, "samples">) {
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th class="num">Reward</th>
            <th>Prompt</th>
            <th>Completion</th>
          </tr>
        </thead>
        <tbody>
          {samples.map(({ prompt, completion, reward }, index) => (
            <tr key={index}>
              <td class="num">{figure(reward, 3)}</td>
              <td class="text">
                <Visible text={prompt} />
              </td>
              <td class="text">
                <Visible text={completion} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
