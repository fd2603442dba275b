import { useMemo } from "preact/hooks";
import type { DiversityPoint, DiversityReport } from "../api.ts";
import type { Line } from "./chart.tsx";
import { queryOf, runPath, useAnswer } from "./client.ts";
import { count, figure, percent } from "./format.ts";
import { Empty, Figure, Finding, type Level, Pending } from "./parts.tsx";
import { hashOf } from "./route.ts";
import type { TabProps } from "./run.tsx";
import { StepChart } from "./step-chart.tsx";
import { Visible } from "./tokens.tsx";

/** Each costs the server some ten milliseconds the first time. */
const STEPS = 24;

interface Found {
  readonly level: Level;
  readonly title: string;
  readonly why: string;
}

/** Completions of a step, below which nothing is said. */
const LEAST = 8;

/** Mean of the first and of the last fifth (at least one) of some values. */
function ends(values: readonly (number | null)[]): { from: number; to: number } | null {
  const known = values.filter((value) => value !== null);
  if (known.length < 2) return null;
  const part = Math.max(1, Math.floor(known.length / 5));
  const mean = (of: readonly number[]) => of.reduce((sum, value) => sum + value, 0) / of.length;
  return { from: mean(known.slice(0, part)), to: mean(known.slice(-part)) };
}

/** What the figures say, worst first, each with the figures that say it. */
function findingsOf(points: readonly DiversityPoint[], reward: readonly (number | null)[]): Found[] {
  const last = points.at(-1);
  if (last === undefined) return [];
  if (last.completions < LEAST)
    return [
      {
        level: "note",
        title: "Too few completions to tell",
        why: `a step of this run has ${count(last.completions)}; from ${LEAST} on their diversity means something`,
      },
    ];
  const found: Found[] = [];
  const unique = ends(points.map((point) => point.unique));
  const rise = ends(reward);
  const lost = unique !== null && unique.from > 0 ? 1 - unique.to / unique.from : 0;
  if (last.degenerate)
    found.push({
      level: "bad",
      title: "The completions have collapsed",
      why: last.reasons.join("; "),
    });
  if (rise !== null && rise.to > rise.from && lost > 0.5)
    found.push({
      level: last.degenerate ? "bad" : "warn",
      title: "The reward rises while diversity falls",
      why: `reward ${figure(rise.from, 3)} → ${figure(rise.to, 3)}, different completions ${percent(unique!.from)} → ${percent(unique!.to)}: read some rollouts before you trust the curve`,
    });
  if (found.length === 0)
    found.push({
      level: "good",
      title: "No sign of a collapse",
      why: `of the last step's ${count(last.completions)} completions ${percent(last.unique)} are different, two of them share ${percent(last.jaccard)} of their words, ${last.template === 0 ? "no template shows" : `a template explains ${percent(last.template)}`}`,
    });
  return found;
}

/** How different the completions are, and whether one template has taken over. */
export function HealthTab({ run, curves, rollouts }: TabProps) {
  const { data, error, again } = useAnswer<DiversityReport>(
    rollouts !== true ? null : runPath(run.id, `/diversity${queryOf({ table: "train", steps: STEPS })}`),
    Math.floor(run.step / 10),
  );
  const reward = curves.runs.get(run.id)?.series.get("train/reward_mean");
  const lines = useMemo(() => diversityLines(data?.points ?? []), [data]);
  const rewardLine = useMemo(
    (): Line[] =>
      reward === undefined
        ? []
        : [{ label: "reward", colour: 2, x: reward.step, y: reward.value, style: "line" }],
    [curves],
  );
  if (rollouts !== false && data === null) return <Pending error={error} again={again} />;
  if (data === null || data.points.length === 0)
    return (
      <Empty title="Nothing to compare yet">
        <p>Diversity is measured on the rollouts that a run keeps; this one has none.</p>
      </Empty>
    );
  const findings = findingsOf(data.points, reward?.value ?? []);
  const last = data.points.at(-1)!;
  return (
    <div class="stack">
      {findings.map(({ level, title, why }) => (
        <Finding key={title} level={level} title={title}>
          <p>{why}</p>
        </Finding>
      ))}
      <dl class="panel figures">
        <Share name="different" value={last.unique} help="distinct texts among the step's completions" />
        <Share
          name="shared words"
          value={last.jaccard}
          help="mean Jaccard similarity of the word sets of two completions"
        />
        <Share
          name="one template"
          value={last.template}
          help="how much of the completions one template explains"
        />
      </dl>
      {data.template === null ? null : (
        <div class="panel pad stack">
          <h2>The template</h2>
          <pre class="template">
            <Visible text={data.template} />
          </pre>
          <p>
            <a
              class="link"
              href={hashOf(["run", run.id, "rollouts"], {
                step_min: String(last.step),
                step_max: String(last.step),
              })}
            >
              its rollouts at step {last.step}
            </a>
          </p>
        </div>
      )}
      <div class="columns">
        <StepChart
          title="Diversity"
          lines={lines}
          height={220}
          sync="health"
          label="Share of distinct completions, of shared words and of the template, by step"
        />
        {rewardLine.length === 0 ? null : (
          <StepChart
            title="Reward"
            lines={rewardLine}
            height={220}
            smooth={0.6}
            sync="health"
            label="Reward by step"
          />
        )}
      </div>
    </div>
  );
}

function diversityLines(points: readonly DiversityPoint[]): Line[] {
  const x = points.map(({ step }) => step);
  const line = (label: string, colour: number, of: (point: DiversityPoint) => number): Line => ({
    label,
    colour,
    x,
    y: points.map(of),
    style: "line",
  });
  return [
    line("different", 0, ({ unique }) => unique),
    line("shared words", 1, ({ jaccard }) => jaccard),
    line("one template", 6, ({ template }) => template),
  ];
}

function Share({ name, value, help }: { name: string; value: number; help: string }) {
  return (
    <Figure name={name} value={percent(value)} help={help}>
      <small>{help}</small>
    </Figure>
  );
}
