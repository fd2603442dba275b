import type { RunSummary, SweepReport, SweptRun } from "../api.ts";
import { type GroupsPath, groupedPath, sweepPath, useAnswer } from "./client.ts";
import { count } from "./format.ts";
import { runList } from "./live.ts";
import { Fraction, Pending, StateDot, Swatch } from "./parts.tsx";
import { hashOf, useRoute } from "./route.ts";
import { useStore } from "./store.ts";
import { SweepCurvesView } from "./sweep-curves.tsx";
import { FinalFigures } from "./sweep-table.tsx";

export const SweepView = ({ id }: { id: string }) => (
  <Groups path={sweepPath(id)} has={(run) => run.sweep === id} />
);

/** Runs of any folder, `#/grouped?runs=ID,ID`: those that differ in their seed alone are one setting. */
export function GroupedView() {
  const runs = useRoute().query.runs ?? "";
  const ids = runs.split(",").filter(Boolean);
  return <Groups key={runs} path={groupedPath(ids)} has={(run) => ids.includes(run.id)} />;
}

interface GroupsProps {
  readonly path: GroupsPath;
  /** Whether a run is one of them. */
  readonly has: (run: RunSummary) => boolean;
}

/** Runs that differ in their seed alone, taken together: their last figures and their curves, with spread. */
function Groups({ path, has }: GroupsProps) {
  const progress = progressOf((useStore(runList)?.runs ?? []).filter(has));
  const report = useAnswer<SweepReport>(path(), progress);
  if (report.data === null) return <Pending error={report.error} again={report.again} />;
  return (
    <div class="stack sweep">
      <Head report={report.data} />
      <FinalFigures report={report.data} />
      <SweepCurvesView report={report.data} path={path} fresh={progress} />
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

function Head({ report: { id, name, recipe, planned, runs, groups } }: { report: SweepReport }) {
  const finished = runs.filter(({ state }) => state === "finished").length;
  const others = Object.entries(Object.groupBy(runs, ({ state }) => state)).filter(
    ([state]) => state !== "finished",
  );
  return (
    <header class="run-head">
      <div class="title">
        <h1>{name}</h1>
        {id === "" ? null : <span class="tag">sweep</span>}
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
    <section class="panel" aria-label="Runs">
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
                <td class="setting">
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
