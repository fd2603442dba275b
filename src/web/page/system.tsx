import { useMemo } from "preact/hooks";
import type { LogTail, RunDetail, RunSummary, SystemInfo } from "../api.ts";
import type { Line } from "./chart.tsx";
import { queryOf, runPath, useAnswer } from "./client.ts";
import type { Curves, RunCurves } from "./curves-data.ts";
import { bytes, count, figure, percent } from "./format.ts";
import { Bar, Figure, Pending } from "./parts.tsx";
import { StepChart } from "./step-chart.tsx";
import { Visible } from "./tokens.tsx";

const LOG_BYTES = 16_384;
const TIMES = ["rollout", "reward", "reference", "train"];

const lastOf = (curves: RunCurves | undefined, metric: string): number | null =>
  curves?.series.get(metric)?.value.at(-1) ?? null;

const textOf = (value: number | null, text: (value: number) => string): string =>
  value === null ? "–" : text(value);

interface Props {
  readonly run: RunSummary;
  readonly curves: Curves;
  readonly detail: RunDetail | null;
}

/** How fast it goes, what bounds it, and on what machine. */
export function SystemTab({ run, curves, detail }: Props) {
  const system = useAnswer<SystemInfo>("/api/system");
  const log = useAnswer<LogTail>(
    runPath(run.id, `/log${queryOf({ bytes: LOG_BYTES })}`),
    `${run.state} ${Math.floor(run.step / 10)}`,
  );
  const mine = curves.runs.get(run.id);
  const speed = useMemo(() => linesOf(mine, ["train/tokens_per_second"]), [curves]);
  const times = useMemo(
    () =>
      linesOf(
        mine,
        TIMES.map((name) => `train/${name}_time`),
      ),
    [curves],
  );
  const fractions = useMemo(
    () =>
      linesOf(
        mine,
        [...(mine?.series.keys() ?? [])].filter((name) => /utilization$/.test(name)),
      ),
    [curves],
  );
  const peak = lastOf(mine, "device/peak_bytes");
  const memory = system.data?.memory_bytes ?? null;
  return (
    <div class="stack">
      <dl class="panel figures">
        <Figure name="tokens/s" value={textOf(lastOf(mine, "train/tokens_per_second"), count)} />
        <Figure name="seconds a step" value={textOf(lastOf(mine, "train/step_time"), (v) => figure(v, 3))} />
        <Figure name="peak memory" value={textOf(peak, bytes)}>
          {peak === null || memory === null ? null : (
            <>
              <Bar share={peak / memory} />
              <small>
                {percent(peak / memory, 1)} of this machine's {bytes(memory)}
              </small>
            </>
          )}
        </Figure>
        <Figure
          name="of peak arithmetic"
          value={textOf(lastOf(mine, "device/flops_utilization"), (v) => percent(v, 1))}
        />
        <Figure name="run folder" value={textOf(detail?.bytes ?? null, bytes)}>
          <small>
            {system.data?.disk_free_bytes == null
              ? ""
              : `${bytes(system.data.disk_free_bytes)} free on its disk`}
          </small>
        </Figure>
        {system.data === null ? null : (
          <Figure wide name="machine" value={system.data.processor}>
            <small>
              {system.data.cores} cores, {bytes(system.data.memory_bytes)} memory (
              {bytes(system.data.free_bytes)} free), {system.data.platform}, rlv {system.data.version}
            </small>
          </Figure>
        )}
      </dl>
      {system.error === null ? null : <Pending error={system.error} again={system.again} />}
      <div class="columns">
        <Speeds title="Tokens a second" lines={speed} />
        <Speeds title="Where a step's time goes, in seconds" lines={times} stacked />
        {fractions.length === 0 ? null : (
          <Speeds title="Share of this machine's peak arithmetic" lines={fractions} />
        )}
      </div>
      <section class="panel log" aria-label="Log">
        <div class="toolbar pad">
          <h2>train.log</h2>
          {log.data?.cut ? <span class="muted">its last lines</span> : null}
        </div>
        {log.data === null ? (
          <Pending error={log.error} again={log.again} />
        ) : (
          // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls by keyboard
          <pre tabIndex={0}>
            <Visible text={log.data.text} feeds={false} />
          </pre>
        )}
      </section>
    </div>
  );
}

function linesOf(curves: RunCurves | undefined, metrics: readonly string[]): Line[] {
  return metrics.flatMap((metric, colour): Line[] => {
    const series = curves?.series.get(metric);
    if (series === undefined) return [];
    const label = metric
      .replace(/^(train|device)\//, "")
      .replace(/_time$/, "")
      .replaceAll("_", " ");
    return [{ label, colour, x: series.step, y: series.value, style: "line" }];
  });
}

function Speeds({ title, lines, stacked = false }: { title: string; lines: Line[]; stacked?: boolean }) {
  if (lines.length === 0) return null;
  return (
    <StepChart
      title={title}
      lines={lines}
      height={200}
      smooth={stacked ? 0 : 0.5}
      stacked={stacked}
      sync="system"
      label={`${title} by step`}
    />
  );
}
