import { useMemo, useState } from "preact/hooks";
import type { RewardReport } from "../api.ts";
import type { Line } from "./chart.tsx";
import { queryOf, runPath, useAnswer } from "./client.ts";
import { figure, percent } from "./format.ts";
import { Distribution } from "./judge.tsx";
import { memo } from "./memo.tsx";
import { Empty, Pending, Segments, Smoothing } from "./parts.tsx";
import { go } from "./route.ts";
import type { TabProps } from "./run.tsx";
import { ChartFrame, StepChart } from "./step-chart.tsx";

type Form = "lines" | "stacked";
/** Steps that the distributions are drawn for, at most. */
const STEPS = 60;

/** What the reward is made of, and how it is distributed, from the first step to the last. */
export function RewardsTab({ run, curves, rollouts }: TabProps) {
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
        <Components lines={lines} />
        <Spread run={run.id} report={data} />
      </div>
      {data.judge.length === 0 ? null : <JudgeOverTime report={data} />}
    </div>
  );
}

function Components({ lines }: { lines: readonly Line[] }) {
  const [form, setForm] = useState<Form>("lines");
  const [smooth, setSmooth] = useState(0.6);
  const frame = {
    id: "reward-parts",
    title: "Components",
    caption: (
      <>
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
      </>
    ),
  };
  if (lines.length === 0)
    return (
      <ChartFrame {...frame}>
        <Empty title="The reward has one part" />
      </ChartFrame>
    );
  return (
    <StepChart
      {...frame}
      lines={lines}
      height={240}
      smooth={form === "stacked" ? 0 : smooth}
      stacked={form === "stacked"}
      sync="rewards"
      label={`Reward components by step: ${lines.map(({ label }) => label).join(", ")}`}
    />
  );
}

interface ReportProps {
  /** Its id. */
  readonly run: string;
  readonly report: RewardReport;
}

/** Rewards of the rollouts of each step: the darker, the more of them. */
const Spread = memo(({ run, report }: ReportProps) => {
  const { points, range, bins } = report;
  if (range === null) return null;
  const width = 100 / points.length;
  const height = 100 / bins;
  return (
    <ChartFrame
      kind="spread"
      title="Distribution of rewards"
      caption={<span class="muted">share of a step's rollouts; a click shows them</span>}
    >
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
                  fill-opacity={0.07 + 0.93 * Math.sqrt(share)}
                  x={column * width}
                  y={100 - (bin + 1) * height}
                  width={width}
                  height={height}
                  onClick={() =>
                    go(["run", run, "rollouts"], {
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
    </ChartFrame>
  );
});

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
const JudgeOverTime = memo(({ report }: Pick<ReportProps, "report">) => {
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
            <StepChart
              key={name}
              title={name.replaceAll("_", " ")}
              caption={
                last === undefined || last.invalid === 0 ? null : (
                  <span class="tag warn">{percent(last.invalid, 1)} without a score</span>
                )
              }
              lines={lines}
              height={150}
              sync="rewards"
              label={`${name}: expected and written scores by step`}
            >
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
            </StepChart>
          );
        })}
      </div>
    </section>
  );
});
