import { useMemo } from "preact/hooks";
import { MODE_NAMES, type ModeName } from "../../report/modes.ts";
import type { RunSummary } from "../api.ts";
import type { Line } from "./chart.tsx";
import type { Curves } from "./curves-data.ts";
import { count, figure, percent } from "./format.ts";
import { plainName } from "./groups.ts";
import { figuresByMode, isMain, MODE_COLOURS, modeText } from "./modes.ts";
import { Empty, Pending, Swatch } from "./parts.tsx";
import type { Series } from "./series.ts";
import { StepChart } from "./step-chart.tsx";

/** Retain and forget adapters together and each by itself, along the steps and at the last evaluation. */
export function RoutingTab({ run, curves }: { run: RunSummary; curves: Curves }) {
  const series = curves.runs.get(run.id)?.series;
  const figures = useMemo(() => figuresByMode(series?.keys() ?? [], "eval"), [curves]);
  if (curves.loading || curves.error !== null) return <Pending error={curves.error} />;
  if (series === undefined || figures.length === 0)
    return (
      <Empty title="No evaluation by mode yet">
        <p>Every `eval_routing_steps` steps the adapters are evaluated together and each by itself.</p>
      </Empty>
    );
  return (
    <div class="stack">
      <LastEvaluation series={series} figures={figures} />
      <section class="stack group" aria-label="By mode over the steps">
        <h2>Over the steps</h2>
        <div class="charts">
          {figures.map((name) => (
            <ModeChart key={name} name={name} series={series} curves={curves} />
          ))}
        </div>
      </section>
    </div>
  );
}

interface ModeChartProps {
  readonly name: string;
  readonly series: ReadonlyMap<string, Series>;
  readonly curves: Curves;
}

function ModeChart({ name, series, curves }: ModeChartProps) {
  const lines = useMemo(
    () =>
      MODE_NAMES.flatMap((mode): Line[] => {
        const of = series.get(`eval/${mode}/${name}`);
        return of === undefined
          ? []
          : [{ label: modeText(mode), colour: MODE_COLOURS[mode], x: of.step, y: of.value, style: "line" }];
      }),
    [curves, name],
  );
  return (
    <StepChart
      id={`mode-${name}`}
      title={plainName(name)}
      lines={lines}
      height={170}
      sync="routing"
      label={`${plainName(name)} by step, ${lines.map(({ label }) => label).join(", ")}`}
    />
  );
}

interface LastProps {
  readonly series: ReadonlyMap<string, Series>;
  readonly figures: readonly string[];
}

function LastEvaluation({ series, figures }: LastProps) {
  const modes = MODE_NAMES.filter((mode) => figures.some((name) => series.has(`eval/${mode}/${name}`)));
  const last = (mode: ModeName, name: string) => series.get(`eval/${mode}/${name}`)?.value.at(-1) ?? null;
  const step = series.get(`eval/${modes[0]}/${figures[0]}`)?.step.at(-1);
  return (
    <section class="panel" aria-label="Last evaluation by mode">
      <div class="toolbar pad">
        <h2>Last evaluation</h2>
        {step === undefined ? null : (
          <span class="muted">
            step <b class="num">{count(step)}</b>
          </span>
        )}
      </div>
      <div class="scroll">
        <table class="modes">
          <thead>
            <tr>
              <th>Adapters</th>
              {figures.map((name) => (
                <th key={name} class="num" title={name}>
                  {plainName(name)}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {modes.map((mode) => (
              <tr key={mode}>
                <th scope="row">
                  <Swatch colour={MODE_COLOURS[mode]} /> {modeText(mode)}
                </th>
                {figures.map((name) => (
                  <td key={name} class="num">
                    {figure(last(mode, name))}
                    {mode === "both" || !isMain(name) ? null : (
                      <small class="muted">{shareText(last(mode, name), last("both", name))}</small>
                    )}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

/** Of two positive values, how much of the second the first is. */
const shareText = (value: number | null, whole: number | null): string =>
  value === null || whole === null || value < 0 || whole <= 0 ? "" : `${percent(value / whole)} of both`;
