import { useMemo, useState } from "preact/hooks";
import type { RewardReport, RunSummary } from "../api.ts";
import { Chart, type Line } from "./chart.tsx";
import { queryOf, runPath, useAnswer } from "./client.ts";
import { count, figure, percent } from "./format.ts";
import { Distribution } from "./judge.tsx";
import { Empty, Pending, Segments, Smoothing } from "./parts.tsx";
import { go } from "./route.ts";
import type { TabProps } from "./run.tsx";

type Form = "lines" | "stacked";
const stepText = (x: number) => (Number.isInteger(x) ? count(x) : "");
/** Steps that the distributions are drawn for, at most. */
const STEPS = 60;

/** What the reward is made of, and how it is distributed, from the first step to the last. */
export function RewardsTab({ run, curves, rollouts }: TabProps) {
  const [form, setForm] = useState<Form>("lines");
  const [smooth, setSmooth] = useState(0.6);
  // Every ten steps of a live run are worth another reading of its rollouts.
  const { data, error, again } = useAnswer<RewardReport>(
    rollouts !== true ? null : runPath(run.id, `/rewards${queryOf({ steps: STEPS })}`),
    Math.floor(run.step / 10),
  );
  const series = curves.runs.get(run.id)?.series;
  const parts = useMemo(
    () =>
      [...(series?.entries() ?? [])]
        .filter(([name]) => name.startsWith("train/rewards/"))
        .map(
          ([name, { step, value }], index): Line => ({
            label: name.slice("train/rewards/".length),
            colour: index,
            x: step,
            y: value,
            style: "line",
          }),
        ),
    [curves],
  );
  const measured = useMemo((): Line[] => {
    if (!data) return [];
    const x = data.points.map(({ step }) => step);
    return data.components.map((label, index) => ({
      label,
      colour: index,
      x,
      y: data.points.map((point) => point.components[index] ?? null),
      style: "line",
    }));
  }, [data]);
  const lines = parts.length > 0 ? parts : measured;

  if (rollouts !== false && data === null) return <Pending error={error} again={again} />;
  if (data === null || data.points.length === 0)
    return (
      <Empty title="No rewards yet">
        <p>This run has no rollouts: it does not train on rewards, or its first step is not done.</p>
      </Empty>
    );
  return (
    <div class="stack">
      <div class="columns">
        <figure class="panel chart-panel" data-chart="reward-parts">
          <figcaption>
            <h3>Components</h3>
            <Smoothing value={smooth} onChange={setSmooth} />
            <Segments
              label="Form"
              choices={[
                { id: "lines", name: "Lines" },
                { id: "stacked", name: "Stacked" },
              ]}
              value={form}
              onChange={setForm}
            />
          </figcaption>
          {lines.length === 0 ? (
            <Empty title="The reward has one part" />
          ) : (
            <Chart
              lines={lines}
              xText={stepText}
              xName="step"
              height={240}
              smooth={form === "stacked" ? 0 : smooth}
              stacked={form === "stacked"}
              sync="rewards"
              label={`Reward components by step: ${lines.map(({ label }) => label).join(", ")}`}
            />
          )}
        </figure>
        <Spread run={run} report={data} />
      </div>
      {data.judge.length === 0 ? null : <JudgeOverTime report={data} />}
    </div>
  );
}

/** Rewards of the rollouts of each step: the darker, the more of them. */
function Spread({ run, report }: { run: RunSummary; report: RewardReport }) {
  const { points, range, bins } = report;
  if (range === null) return null;
  const width = 100 / points.length;
  const height = 100 / bins;
  return (
    <figure class="panel chart-panel spread">
      <figcaption>
        <h3>Distribution of rewards</h3>
        <span class="muted">share of a step's rollouts; a click shows them</span>
      </figcaption>
      <div class="spread-plot">
        <span class="high num">{figure(range.max, 3)}</span>
        <span class="low num">{figure(range.min, 3)}</span>
        <svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="rewards by step">
          {points.map((point, column) =>
            point.histogram.map((share, bin) =>
              share === 0 ? null : (
                // biome-ignore lint/a11y/noStaticElementInteractions: the rollouts' own filters take the keyboard
                <rect
                  key={`${column}-${bin}`}
                  class={`h${Math.min(9, 1 + Math.floor(9 * Math.sqrt(share)))}`}
                  x={column * width}
                  y={100 - (bin + 1) * height}
                  width={width}
                  height={height}
                  onClick={() =>
                    go(["run", run.id, "rollouts"], {
                      step_min: String(point.step),
                      step_max: String(point.step),
                      ...binFilter(range, bins, bin),
                    })
                  }
                >
                  <title>{`step ${point.step}: ${percent(share)} of ${point.rollouts}`}</title>
                </rect>
              ),
            ),
          )}
        </svg>
        <span class="from num">{points[0]?.step}</span>
        <span class="to num">step {points.at(-1)?.step}</span>
      </div>
    </figure>
  );
}

function binFilter({ min, max }: { min: number; max: number }, bins: number, bin: number) {
  if (min === max) return {};
  const width = (max - min) / bins;
  const text = (value: number) => String(Number(value.toPrecision(6)));
  return {
    ...(bin === 0 ? {} : { reward_min: text(min + bin * width) }),
    ...(bin === bins - 1 ? {} : { reward_max: text(min + (bin + 1) * width) }),
  };
}

/** Per criterion: both readings along the steps, and how the judge's probabilities lie at first and now. */
function JudgeOverTime({ report }: { report: RewardReport }) {
  const x = report.points.map(({ step }) => step);
  return (
    <section class="stack" aria-label="Judge">
      <h2>Judge</h2>
      <div class="charts">
        {report.judge.map((name, index) => {
          const of = report.points.map((point) => point.judge[index] ?? null);
          const known = of.filter((each) => each !== null);
          const [first, last] = [known[0], known.at(-1)];
          const lines: Line[] = [
            { label: "expected", colour: 0, x, y: of.map((each) => each?.expected ?? null), style: "line" },
            { label: "said", colour: 1, x, y: of.map((each) => each?.text ?? null), style: "points" },
          ];
          return (
            <figure class="panel chart-panel" key={name}>
              <figcaption>
                <h3>{name.replaceAll("_", " ")}</h3>
                {last === undefined || last.invalid === 0 ? null : (
                  <span class="tag warn">{percent(last.invalid, 1)} without a score</span>
                )}
              </figcaption>
              <Chart
                lines={lines}
                xText={stepText}
                xName="step"
                height={150}
                sync="rewards"
                label={`${name}: expected and written scores by step`}
              />
              {first === undefined || last === undefined ? null : (
                <div class="now-and-then">
                  <div>
                    <small class="muted">at first</small>
                    <Distribution values={first.probabilities} />
                  </div>
                  <div>
                    <small class="muted">now</small>
                    <Distribution values={last.probabilities} />
                  </div>
                </div>
              )}
            </figure>
          );
        })}
      </div>
    </section>
  );
}
