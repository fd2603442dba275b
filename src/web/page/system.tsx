import { useMemo } from "preact/hooks";
import type { LogTail, RunDetail, RunSummary, SystemInfo } from "../api.ts";
import { Chart, type Line } from "./chart.tsx";
import { queryOf, runPath, useAnswer } from "./client.ts";
import type { Curves, RunCurves } from "./curves-data.ts";
import { bytes, count, figure, percent } from "./format.ts";
import { Bar, Pending } from "./parts.tsx";
import { Visible } from "./tokens.tsx";

const LOG_BYTES = 16_384;
const TIMES = ["rollout", "reward", "reference", "train"];
const stepText = (x: number) => (Number.isInteger(x) ? count(x) : "");

const lastOf = (curves: RunCurves | undefined, metric: string): number | null =>
  curves?.series.get(metric)?.value.at(-1) ?? null;

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
        <Figure name="tokens/s" value={lastOf(mine, "train/tokens_per_second")} text={(v) => count(v)} />
        <Figure name="seconds a step" value={lastOf(mine, "train/step_time")} text={(v) => figure(v, 3)} />
        <div class="figure">
          <dt>peak memory</dt>
          <dd>
            <b>{peak === null ? "–" : bytes(peak)}</b>
          </dd>
          {peak === null || memory === null ? null : (
            <>
              <Bar share={peak / memory} />
              <small>
                {percent(peak / memory, 1)} of this machine's {bytes(memory)}
              </small>
            </>
          )}
        </div>
        <Figure
          name="of peak arithmetic"
          value={lastOf(mine, "device/flops_utilization")}
          text={(v) => percent(v, 1)}
        />
        <div class="figure">
          <dt>run folder</dt>
          <dd>
            <b>{detail === null ? "–" : bytes(detail.bytes)}</b>
          </dd>
          <small>
            {system.data?.disk_free_bytes == null
              ? ""
              : `${bytes(system.data.disk_free_bytes)} free on its disk`}
          </small>
        </div>
        {system.data === null ? null : (
          <div class="figure wide">
            <dt>machine</dt>
            <dd>{system.data.processor}</dd>
            <small>
              {system.data.cores} cores, {bytes(system.data.memory_bytes)} memory (
              {bytes(system.data.free_bytes)} free), {system.data.platform}, rlv {system.data.version}
            </small>
          </div>
        )}
      </dl>
      {system.error === null ? null : <Pending error={system.error} again={system.again} />}
      <div class="columns">
        <Figured title="Tokens a second" lines={speed} />
        <Figured title="Where a step's time goes, in seconds" lines={times} stacked />
        {fractions.length === 0 ? null : (
          <Figured title="Share of this machine's peak arithmetic" lines={fractions} />
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

function Figure({
  name,
  value,
  text,
}: {
  name: string;
  value: number | null;
  text: (value: number) => string;
}) {
  return (
    <div class="figure">
      <dt>{name}</dt>
      <dd>
        <b>{value === null ? "–" : text(value)}</b>
      </dd>
    </div>
  );
}

function Figured({ title, lines, stacked = false }: { title: string; lines: Line[]; stacked?: boolean }) {
  if (lines.length === 0) return null;
  return (
    <figure class="panel chart-panel">
      <figcaption>
        <h3>{title}</h3>
      </figcaption>
      <Chart
        lines={lines}
        xText={stepText}
        xName="step"
        height={200}
        smooth={stacked ? 0 : 0.5}
        stacked={stacked}
        sync="system"
        label={`${title} by step`}
      />
    </figure>
  );
}
