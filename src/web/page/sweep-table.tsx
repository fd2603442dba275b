import { MODE_NAMES, modeOf } from "../../report/modes.ts";
import type { Spread, SweepReport } from "../api.ts";
import { figure } from "./format.ts";
import { plainName } from "./groups.ts";
import { figuresByMode, modeText } from "./modes.ts";
import { Empty, Swatch } from "./parts.tsx";
import { hashOf } from "./route.ts";
import { compareHref } from "./runs.tsx";
import { seriesName } from "./theme.ts";

/** Where last figures come from, the most telling one first, and in words. */
const SOURCES = [
  ["final", "evaluation of the final checkpoints"],
  ["eval", "last evaluation while training"],
  ["train", "last step of training"],
] as const;
/** Left to the curves. */
const UNSHOWN = /^(unique_rate|completion_length_avg|proper_ending_rate|degenerate)$/;

interface Row {
  readonly group: number;
  readonly mode: (typeof MODE_NAMES)[number] | null;
}

/** What the finished runs of each setting came to: mean and standard deviation over seeds, and every seed as a dot. */
export function FinalFigures({ report }: { report: SweepReport }) {
  const { groups } = report;
  const metrics = [...new Set(groups.flatMap((group) => Object.keys(group.metrics)))];
  const found = SOURCES.find(([source]) => metrics.some((name) => name.startsWith(`${source}/`)));
  if (found === undefined)
    return (
      <div class="panel">
        <Empty title="No run has finished yet">
          <p>When one has, its last figures are here, with the spread over seeds.</p>
        </Empty>
      </div>
    );
  const [source, words] = found;
  const mine = metrics.filter((name) => name.startsWith(`${source}/`));
  const modes = MODE_NAMES.filter((mode) => mine.some((name) => modeOf(name, source)?.mode === mode));
  const figures = (
    modes.length === 0 ? mine.map((name) => name.slice(source.length + 1)) : figuresByMode(mine, source)
  ).filter((name) => !UNSHOWN.test(name));
  const metricOf = ({ mode }: Row, name: string) =>
    mode === null ? `${source}/${name}` : `${source}/${mode}/${name}`;
  const rows = groups.flatMap(({ metrics: has }, group): Row[] => {
    const there = modes.filter((mode) =>
      Object.keys(has).some((name) => modeOf(name, source)?.mode === mode),
    );
    return there.length === 0 ? [{ group, mode: null }] : there.map((mode) => ({ group, mode }));
  });
  const seeds = (row: Row, name: string) =>
    report.runs.flatMap((run) => {
      const value = run.metrics[metricOf(row, name)];
      return run.group === row.group && run.state === "finished" && value != null ? [value] : [];
    });
  const ranges = figures.map((name) => {
    const all = rows.flatMap((row) => seeds(row, name));
    return [Math.min(...all), Math.max(...all)] as const;
  });
  return (
    <section class="panel" aria-label="Last figures">
      <div class="toolbar pad">
        <h2>Last figures</h2>
        <span class="muted">{words}; mean ± standard deviation over seeds, a dot a seed</span>
      </div>
      <div class="scroll">
        <table class="finals">
          <thead>
            <tr>
              <th>Setting</th>
              {modes.length > 0 ? <th>Adapters</th> : null}
              {figures.map((name) => (
                <th key={name} class="num" title={name}>
                  {plainName(name)}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map((row, at) => {
              const group = groups[row.group]!;
              const first = rows[at - 1]?.group !== row.group;
              const span = rows.filter((other) => other.group === row.group).length;
              return (
                <tr key={`${row.group} ${row.mode}`} class={first ? "first" : ""}>
                  {first ? (
                    <th scope="rowgroup" rowSpan={span}>
                      <Swatch colour={row.group} /> <GroupLink report={report} group={row.group} />
                      <small class="muted">
                        {group.finished} / {group.planned} runs
                      </small>
                    </th>
                  ) : null}
                  {modes.length === 0 ? null : (
                    <th scope="row">{row.mode === null ? null : modeText(row.mode)}</th>
                  )}
                  {figures.map((name, column) => (
                    <td key={name} class="num">
                      <SpreadText of={group.metrics[metricOf(row, name)]} />
                      <Strip values={seeds(row, name)} range={ranges[column]!} colour={row.group} />
                    </td>
                  ))}
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </section>
  );
}

/** The setting's name, leading to its runs side by side. */
function GroupLink({ report, group }: { report: SweepReport; group: number }) {
  const ids = report.runs.flatMap((run) => (run.group === group && run.id !== null ? [run.id] : []));
  const { name } = report.groups[group]!;
  if (ids.length === 0) return <>{name}</>;
  return (
    <a
      class="link"
      title="its runs side by side"
      href={ids.length === 1 ? hashOf(["run", ids[0]!]) : compareHref(ids)}
    >
      {name}
    </a>
  );
}

/** Whether a difference is what sums of equal numbers leave behind. */
const isRounding = (difference: number, of: number | null): boolean => difference <= 1e-9 * Math.abs(of ?? 0);

function SpreadText({ of }: { of: Spread | undefined }) {
  if (of === undefined) return <span class="muted">–</span>;
  return (
    <span title={`from ${figure(of.min)} to ${figure(of.max)}, ${of.n} runs`}>
      <b>{figure(of.mean, 3)}</b>
      {of.std === null ? null : (
        <span class="muted"> ± {figure(isRounding(of.std, of.mean) ? 0 : of.std, 2)}</span>
      )}
    </span>
  );
}

const WIDTH = 84;
const HEIGHT = 10;

/** Each value a dot between the least and the greatest of its column. */
function Strip({
  values,
  range: [low, high],
  colour,
}: {
  values: readonly number[];
  range: readonly [number, number];
  colour: number;
}) {
  if (values.length === 0) return null;
  const x = (value: number) =>
    isRounding(high - low, high) ? WIDTH / 2 : 4 + ((WIDTH - 8) * (value - low)) / (high - low);
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return (
    <svg
      class="strip"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      aria-hidden="true"
      style={{ "--series": `var(--${seriesName(colour)})` }}
    >
      <path class="scale" d={`M0 ${HEIGHT / 2}H${WIDTH}`} />
      {values.map((value, at) => (
        <circle key={at} cx={x(value)} cy={HEIGHT / 2} r="3" />
      ))}
      <path class="mean" d={`M${x(mean)} 0V${HEIGHT}`} />
    </svg>
  );
}
