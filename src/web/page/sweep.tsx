import { useMemo } from "preact/hooks";
import type { RunSummary, SweepReport, SweptRun } from "../api.ts";
import { sweepPath, useAnswer } from "./client.ts";
import { count } from "./format.ts";
import { runList } from "./live.ts";
import { Fraction, Pending, StateDot, Swatch } from "./parts.tsx";
import { hashOf } from "./route.ts";
import { useStore } from "./store.ts";
import { SweepCurvesView } from "./sweep-curves.tsx";
import { FinalFigures } from "./sweep-table.tsx";

/** Runs that differ in their seed alone, taken together: their last figures and their curves, with spread. */
export function SweepView({ id }: { id: string }) {
  const list = useStore(runList);
  const mine = useMemo(() => (list?.runs ?? []).filter((run) => run.sweep === id), [list, id]);
  const report = useAnswer<SweepReport>(sweepPath(id), progressOf(mine));
  if (report.data === null) return <Pending error={report.error} again={report.again} />;
  return (
    <div class="stack sweep">
      <Head report={report.data} />
      <FinalFigures report={report.data} />
      <SweepCurvesView report={report.data} fresh={progressOf(mine)} />
      <RunTable report={report.data} />
    </div>
  );
}

/** Changes when reading the runs again is worth it. */
function progressOf(runs: readonly RunSummary[]): string {
  const steps = runs.reduce((sum, run) => sum + run.step, 0);
  const ended = runs.filter(({ state }) => state !== "live").length;
  return `${runs.length} ${ended} ${Math.floor(steps / (10 * Math.max(1, runs.length)))}`;
}

function Head({ report: { name, recipe, planned, runs, groups } }: { report: SweepReport }) {
  const finished = runs.filter(({ state }) => state === "finished").length;
  const others = Object.entries(Object.groupBy(runs, ({ state }) => state)).filter(
    ([state]) => state !== "finished",
  );
  return (
    <header class="run-head">
      <div class="title">
        <h1>{name}</h1>
        <span class="tag">sweep</span>
        <span class="tag">{recipe}</span>
        <span class="tag">
          {count(groups.length)} {groups.length === 1 ? "setting" : "settings"}
        </span>
        {others.map(([state, of]) => (
          <span class="tag" key={state}>
            <StateDot state={state as SweptRun["state"]} /> {of.length} {state}
          </span>
        ))}
        <Fraction done={finished} total={planned} what=" finished" />
      </div>
    </header>
  );
}

function RunTable({ report: { runs, groups } }: { report: SweepReport }) {
  return (
    <section class="panel" aria-label="Runs of this sweep">
      <div class="toolbar pad">
        <h2>Runs</h2>
      </div>
      <div class="scroll">
        <table class="swept">
          <thead>
            <tr>
              <th>Run</th>
              <th>Setting</th>
              <th class="num">Seed</th>
              <th class="num">Step</th>
              <th>State</th>
            </tr>
          </thead>
          <tbody>
            {runs.map((run) => (
              <tr key={run.name}>
                <td>
                  {run.id === null ? (
                    <span class="muted">{run.name}</span>
                  ) : (
                    <a class="link" href={hashOf(["run", run.id])}>
                      {run.name}
                    </a>
                  )}
                </td>
                <td>
                  <Swatch colour={run.group} /> {groups[run.group]?.name}
                </td>
                <td class="num">{run.seed ?? "–"}</td>
                <td class="num">{count(run.step)}</td>
                <td>
                  <StateDot state={run.state} /> {run.state}
                  {run.error === null ? null : <small class="bad">{run.error}</small>}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
