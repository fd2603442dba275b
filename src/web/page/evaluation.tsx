import type { ComponentChildren } from "preact";
import type { EvaluationReport, FreshCompletions, JudgeExamination } from "../api.ts";
import { count, figure, percent, signed } from "./format.ts";
import { Glyph } from "./parts.tsx";
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

function Figure({ name, help, children }: { name: string; help: string; children: ComponentChildren }) {
  return (
    <div class="figure">
      <dt>{name}</dt>
      <dd>
        <b>{children}</b>
      </dd>
      <small>{help}</small>
    </div>
  );
}

function Fresh({ fresh, kl }: { fresh: FreshCompletions; kl: number | null }) {
  const { reward, components, diversity } = fresh;
  const parts = Object.entries(components);
  return (
    <>
      {diversity.degenerate ? (
        <div class="finding bad" role="alert">
          <Glyph name="alarm" />
          <div>
            <h3>The completions have collapsed</h3>
            <p>{diversity.reasons.join("; ")}</p>
            {diversity.template === null ? null : (
              <p>
                <Visible text={diversity.template} />
              </p>
            )}
          </div>
        </div>
      ) : null}
      <dl class="figures">
        {reward === null ? null : (
          <Figure
            name="reward"
            help={`± ${figure(reward.std, 3)}, from ${figure(reward.min, 3)} to ${figure(reward.max, 3)}`}
          >
            {figure(reward.mean)}
          </Figure>
        )}
        {fresh.best_of_n === null ? null : (
          <Figure name="best of a prompt" help="mean of the greatest reward">
            {figure(fresh.best_of_n)}
          </Figure>
        )}
        {parts.length < 2
          ? null
          : parts.map(([name, value]) => (
              <Figure key={name} name={name} help="component">
                {figure(value)}
              </Figure>
            ))}
        {fresh.flagged_share === null ? null : (
          <Figure name="flagged" help="by a detector of reward hacks">
            {percent(fresh.flagged_share)}
          </Figure>
        )}
        <Figure name="completions" help={`fresh, of ${count(fresh.prompts)} prompts`}>
          {count(fresh.completions)}
        </Figure>
        <Figure name="length" help={`tokens; ${percent(fresh.eos_share)} end by themselves`}>
          {figure(fresh.mean_tokens, 3)}
        </Figure>
        <Figure name="different" help={`two share ${percent(diversity.jaccard)} of their words`}>
          {percent(diversity.unique_share)}
        </Figure>
        <Figure name="one template" help="completions that follow a common one">
          {percent(diversity.template_share)}
        </Figure>
        {kl === null ? null : (
          <Figure name="KL" help="from the reference, last recorded">
            {figure(kl, 3)}
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
