import { useMemo, useRef, useState } from "preact/hooks";
import type { RunList, RunState, RunSummary } from "../api.ts";
import { Sparkline } from "./chart.tsx";
import { ago, count, dateTime, duration, figure } from "./format.ts";
import { useKeys } from "./keys.tsx";
import { loadRuns, runList, runListError } from "./live.ts";
import { Empty, Fraction, Pending, Progress, Segments, StateDot } from "./parts.tsx";
import { go, hashOf, setQuery, useRoute } from "./route.ts";
import { useStore } from "./store.ts";

type Shown = "all" | "live" | "finished" | "ended";
const SHOWN: readonly { id: Shown; name: string }[] = [
  { id: "all", name: "All" },
  { id: "live", name: "Live" },
  { id: "finished", name: "Finished" },
  { id: "ended", name: "Ended early" },
];

function matches(run: RunSummary, shown: Shown, words: readonly string[]): boolean {
  if (shown === "live" && run.state !== "live") return false;
  if (shown === "finished" && run.state !== "finished") return false;
  if (shown === "ended" && (run.state === "live" || run.state === "finished")) return false;
  const text = [run.name, run.recipe, run.model, run.state, ...run.tags].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

/** The reward, or what stands for it in runs without one. */
export const mainMetric = (run: RunSummary): string | null =>
  run.sparkline?.name ??
  ["train/reward_mean", "train/accuracy", "train/loss"].find((name) => run.last[name] != null) ??
  null;

function sorted(runs: readonly RunSummary[]): RunSummary[] {
  const rank = (run: RunSummary) => (run.state === "live" ? 1 : 0);
  return [...runs].sort((a, b) => rank(b) - rank(a) || (b.updated ?? 0) - (a.updated ?? 0));
}

export const compareHref = (ids: readonly string[]): string =>
  hashOf(["run", ids[0]!, "curves"], { vs: ids.slice(1).join(",") });

export function Runs() {
  const list = useStore(runList);
  const error = useStore(runListError);
  const { query } = useRoute();
  const [marked, setMarked] = useState<readonly string[]>([]);
  const [at, setAt] = useState(-1);
  const search = useRef<HTMLInputElement>(null);
  const shown = (query.state ?? "all") as Shown;
  const text = query.q ?? "";
  const runs = useMemo(() => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    // Those of sweeps are reached through them, unless somebody looks for something.
    const sought = words.length > 0 || shown !== "all";
    const sweeps = new Set(list?.sweeps.map(({ id }) => id));
    return sorted(
      (list?.runs ?? []).filter(
        (run) => matches(run, shown, words) && (sought || run.sweep === null || !sweeps.has(run.sweep)),
      ),
    );
  }, [list, shown, text]);
  const mark = (id: string) =>
    setMarked((old) => (old.includes(id) ? old.filter((each) => each !== id) : [...old, id]));
  const move = (by: number) => {
    const next = Math.max(0, Math.min(runs.length - 1, at + by));
    setAt(next);
    document.querySelectorAll(".run-row")[next]?.scrollIntoView({ block: "nearest" });
  };
  useKeys({
    j: () => move(1),
    k: () => move(-1),
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    x: () => runs[at] && mark(runs[at].id),
    Enter: () => runs[at] && go(["run", runs[at].id]),
    "/": () => search.current?.focus(),
  });

  if (list === null) return <Pending error={error} again={() => void loadRuns()} />;
  const live = list.runs.filter(({ state }) => state === "live").length;
  if (list.runs.length === 0 && list.sweeps.length === 0)
    return (
      <Empty title="No runs yet">
        <p>Runs in this folder show up here by themselves, while they train and afterwards.</p>
        <code>rlv train --output_dir {list.root}</code>
      </Empty>
    );
  return (
    <div class="stack">
      <div class="toolbar">
        <h1>Runs</h1>
        <span class="muted">
          {count(list.runs.length)}
          {live > 0 ? `, ${live} live` : ""}
        </span>
        <input
          ref={search}
          type="search"
          class="push"
          placeholder="Name, recipe, model, tag"
          aria-label="Search runs"
          value={text}
          onInput={(event) => setQuery({ q: event.currentTarget.value })}
          onKeyDown={(event) => {
            if (event.key !== "Escape") return;
            // Left as it is: a browser would empty it.
            event.preventDefault();
            event.currentTarget.blur();
          }}
        />
        <Segments
          label="States"
          choices={SHOWN}
          value={shown}
          onChange={(state) => setQuery({ state: state === "all" ? null : state })}
        />
      </div>
      {shown === "all" && text === "" && list.sweeps.length > 0 ? <Sweeps list={list} /> : null}
      {runs.length === 0 && shown === "all" && text === "" ? null : runs.length === 0 ? (
        <Empty title="No run matches">
          <button type="button" onClick={() => setQuery({ q: null, state: null })}>
            show all
          </button>
        </Empty>
      ) : (
        <div class="panel">
          <table class="runs">
            <thead>
              <tr>
                <th>
                  <span class="hidden">compare</span>
                </th>
                <th>Run</th>
                <th>Recipe</th>
                <th>Steps</th>
                <th>Main metric</th>
                <th class="num">Last step</th>
              </tr>
            </thead>
            <tbody>
              {runs.map((run, index) => (
                <Row
                  key={run.id}
                  run={run}
                  at={index === at}
                  marked={marked.includes(run.id)}
                  onMark={() => mark(run.id)}
                />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {marked.length > 0 ? (
        <div class="marked" role="status">
          <span>
            <b>{marked.length}</b> {marked.length === 1 ? "run" : "runs"} marked
          </span>
          <button type="button" class="plain" onClick={() => setMarked([])}>
            clear
          </button>
          <button
            type="button"
            class="primary"
            disabled={marked.length < 2}
            onClick={() => {
              location.hash = compareHref(marked);
            }}
          >
            Compare
          </button>
          <button
            type="button"
            disabled={marked.length < 2}
            title="runs that differ in their seed alone together, with mean and spread"
            onClick={() => go(["grouped"], { runs: marked.join(",") })}
          >
            Group by seed
          </button>
        </div>
      ) : null}
    </div>
  );
}

/** Sweeps, newest first. */
function Sweeps({ list: { sweeps, runs } }: { list: RunList }) {
  const rows = sweeps
    .map((sweep) => {
      const mine = runs.filter((run) => run.sweep === sweep.id);
      const of = (...states: RunState[]) => mine.filter(({ state }) => states.includes(state)).length;
      const updated = Math.max(0, ...mine.map((run) => run.updated ?? 0));
      return {
        ...sweep,
        updated,
        live: of("live"),
        finished: of("finished"),
        failed: of("crashed", "diverged"),
      };
    })
    .sort((a, b) => b.updated - a.updated);
  return (
    <div class="panel">
      <table class="runs sweeps" aria-label="Sweeps">
        <thead>
          <tr>
            <th>Sweep</th>
            <th>Recipe</th>
            <th>Finished</th>
            <th>State</th>
            <th class="num">Last step</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(({ id, name, recipe, planned, finished, live, failed, updated }) => (
            <tr key={id}>
              <td class="name">
                <a href={hashOf(["sweep", id])}>{name}</a>
              </td>
              <td class="recipe">{recipe}</td>
              <td class="steps">
                <Fraction done={finished} total={planned} />
              </td>
              <td class="metric">
                {live > 0 ? <span class="tag good">{live} live</span> : null}{" "}
                {failed > 0 ? <span class="tag bad">{failed} failed</span> : null}{" "}
                {finished === planned ? (
                  <span class="tag">finished</span>
                ) : live === 0 ? (
                  <span class="tag warn">not running</span>
                ) : null}
              </td>
              <td class="num when">{updated === 0 ? "–" : ago(updated)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

interface RowProps {
  readonly run: RunSummary;
  readonly at: boolean;
  readonly marked: boolean;
  readonly onMark: () => void;
}

function Row({ run, at, marked, onMark }: RowProps) {
  const metric = mainMetric(run);
  const values = (run.sparkline?.values ?? []).filter((value) => value !== null);
  const href = hashOf(["run", run.id]);
  return (
    <tr
      class={`run-row${at ? " at" : ""}${marked ? " chosen" : ""}`}
      onClick={(event) => {
        if ((event.target as HTMLElement).closest("a,input,label") === null) location.hash = href;
      }}
    >
      <td class="mark">
        <label>
          <input type="checkbox" checked={marked} onChange={onMark} aria-label={`compare ${run.name}`} />
        </label>
      </td>
      <td class="name">
        <StateDot state={run.state} />
        <span>
          <a href={href}>{run.name}</a>
          {run.tags.map((tag) => (
            <span class="tag" key={tag}>
              {tag}
            </span>
          ))}
          {run.problem === null ? null : <small class="bad">{run.problem}</small>}
        </span>
      </td>
      <td class="recipe">
        {run.recipe ?? "–"}
        {run.model === null ? null : <small class="muted">{run.model}</small>}
      </td>
      <td class="steps">
        <Progress run={run} />
      </td>
      <td class="metric">
        {metric === null ? (
          <span class="muted">–</span>
        ) : (
          <>
            <Sparkline values={values} label={`${metric}, from the first to the last step`} />
            <span>
              <b class="num">{figure(run.last[metric])}</b>
              <small class="muted">{metric.replace(/^train\//, "")}</small>
            </span>
          </>
        )}
      </td>
      <td class="num when" title={run.started === null ? undefined : `started ${dateTime(run.started)}`}>
        {run.state === "live" ? (
          <span class="good">live</span>
        ) : run.updated === null ? (
          run.state
        ) : (
          ago(run.updated)
        )}
        {run.started !== null && run.updated !== null ? (
          <small class="muted">{duration((run.updated - run.started) / 1000)}</small>
        ) : null}
      </td>
    </tr>
  );
}
