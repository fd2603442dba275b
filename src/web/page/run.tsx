import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { modeOf } from "../../report/modes.ts";
import type { DiversityReport, RunDetail, RunSummary } from "../api.ts";
import { CheckpointsTab } from "./checkpoints.tsx";
import { queryOf, runPath, useAnswer } from "./client.ts";
import { ConfigTab } from "./config.tsx";
import { CurvesTab, type Shown } from "./curves.tsx";
import { type Curves, type RunCurves, useCurves } from "./curves-data.ts";
import { dateTime, duration, figure, signed } from "./format.ts";
import { HealthTab } from "./health.tsx";
import { useKeys } from "./keys.tsx";
import { rolloutCounts, runList } from "./live.ts";
import { memo } from "./memo.tsx";
import { Figure, Glyph, Pending, Progress, StateDot, StateTag, Swatch } from "./parts.tsx";
import { RewardsTab } from "./rewards.tsx";
import { RolloutsTab } from "./rollouts.tsx";
import { go, hashOf, setQuery, useRoute } from "./route.ts";
import { RoutingTab } from "./routing.tsx";
import { mainMetric } from "./runs.tsx";
import { useStore } from "./store.ts";
import { SystemTab } from "./system.tsx";

const TABS = [
  ["curves", "Curves"],
  ["rewards", "Rewards"],
  ["rollouts", "Rollouts"],
  ["health", "Health"],
  ["system", "System"],
  ["config", "Config"],
  ["checkpoints", "Checkpoints"],
  ["routing", "Routing"],
] as const;
/** Steps whose completions are looked at to see whether they have collapsed; the last one counts. */
const GLANCE = 2;
/** Views that the query's comparison belongs to. */
const KEPT = ["vs"];

/** What views on a run's rollouts are given. */
export interface TabProps {
  readonly run: RunSummary;
  readonly curves: Curves;
  /** Whether it keeps any; null: not known yet. */
  readonly rollouts: boolean | null;
}

export function RunView({ id, tab, rest }: { id: string; tab: string; rest: readonly string[] }) {
  const list = useStore(runList);
  const rolloutTables = useStore(rolloutCounts);
  const { query } = useRoute();
  const summary = list?.runs.find((run) => run.id === id);
  // What the summary does not tell changes when checkpoints do, which is rare: by the tens of steps.
  const fresh = `${summary?.state} ${Math.floor((summary?.step ?? 0) / 10)}`;
  const detail = useAnswer<RunDetail>(runPath(id), fresh);
  // null: not known yet whether it keeps rollouts.
  const rollouts =
    rolloutTables[id] !== undefined || detail.data?.rollouts ? true : detail.data === null ? null : false;
  const diversity = useAnswer<DiversityReport>(
    rollouts === true ? runPath(id, `/diversity${queryOf({ table: "train", steps: GLANCE })}`) : null,
    Math.floor((summary?.step ?? 0) / 10),
  );
  const collapsed = diversity.data?.points.at(-1)?.degenerate === true;
  const versus = (query.vs ?? "").split(",").filter((each) => each !== "" && each !== id);
  const ids = [id, ...versus];
  const curves = useCurves(ids);
  const run = summary ?? detail.data;
  const shown = useMemo(
    () =>
      ids.flatMap((each, colour): Shown[] => {
        const of = each === id ? run : list?.runs.find((other) => other.id === each);
        return of ? [{ run: of, colour }] : [];
      }),
    [ids.join(), list, run],
  );
  const tabs = TABS.filter(([name]) => name !== "routing" || isRouted(detail.data, curves.runs.get(id)));
  const kept = Object.fromEntries(Object.entries(query).filter(([name]) => KEPT.includes(name)));
  useKeys(
    Object.fromEntries(tabs.map(([to], index) => [String(index + 1), () => go(["run", id, to], kept)])),
  );

  useEffect(() => {
    document.title = run ? `${run.name} · rlv` : "rlv";
    return () => {
      document.title = "rlv";
    };
  }, [run?.name]);

  // A narrow screen shows some of the tabs.
  const bar = useRef<HTMLElement>(null);
  useEffect(() => {
    const current = bar.current?.querySelector<HTMLElement>("[aria-current]");
    if (bar.current && current) bar.current.scrollLeft = current.offsetLeft - 60;
  }, [tab, tabs.length, run === undefined || run === null]);

  if (!run) return <Pending error={detail.error} again={detail.again} />;
  return (
    <div class={`stack run of-${tab}`}>
      <Head run={run} detail={detail.data} curves={curves} collapsed={collapsed} />
      <div class="tabs-row">
        <nav class="tabs" aria-label="of this run" ref={bar}>
          {tabs.map(([to, name], index) => (
            <a
              key={to}
              href={hashOf(["run", id, to], kept)}
              aria-current={tab === to ? "page" : undefined}
              title={`${name} (${index + 1})`}
            >
              {name}
            </a>
          ))}
        </nav>
        {tab === "curves" || tab === "config" ? <Comparison id={id} shown={shown} /> : null}
      </div>
      {run.problem === null ? null : <div class="notice warn">{run.problem}</div>}
      {detail.data?.error ? <div class="notice error">{detail.data.error}</div> : null}
      {tab === "curves" ? <CurvesTab shown={shown} curves={curves} /> : null}
      {tab === "rewards" ? <RewardsTab run={run} curves={curves} rollouts={rollouts} /> : null}
      {tab === "rollouts" ? <RolloutsTab run={run} rollouts={rollouts} selected={rest[0] ?? null} /> : null}
      {tab === "health" ? <HealthTab run={run} curves={curves} rollouts={rollouts} /> : null}
      {tab === "system" ? <SystemTab run={run} curves={curves} detail={detail.data} /> : null}
      {tab === "config" ? <ConfigTab detail={detail} shown={shown} /> : null}
      {tab === "routing" ? <RoutingTab run={run} curves={curves} /> : null}
      {tab === "checkpoints" ? <CheckpointsTab run={run} detail={detail} /> : null}
    </div>
  );
}

/** Whether a run is one whose adapters are evaluated by themselves. */
function isRouted(detail: RunDetail | null, curves: RunCurves | undefined): boolean {
  return (
    detail?.config?.eval_routing_steps != null ||
    [...(curves?.series.keys() ?? [])].some((name) => modeOf(name, "eval") !== null)
  );
}

interface FigureOf {
  readonly name: string;
  readonly metric: string;
  /** 1: more is better, −1: less is, 0: neither. */
  readonly good: -1 | 0 | 1;
}

const FIGURES: readonly FigureOf[] = [
  { name: "reward", metric: "train/reward_mean", good: 1 },
  { name: "eval reward", metric: "eval/reward", good: 1 },
  { name: "loss", metric: "train/loss", good: 0 },
  { name: "accuracy", metric: "eval/accuracy", good: 1 },
  { name: "KL", metric: "train/kl_div", good: 0 },
  { name: "entropy", metric: "train/entropy", good: 0 },
  { name: "length", metric: "train/completion_length_avg", good: 0 },
  { name: "tokens/s", metric: "train/tokens_per_second", good: 0 },
];

interface HeadProps {
  readonly run: RunSummary;
  readonly detail: RunDetail | null;
  readonly curves: Curves;
  /** Its last completions have degenerated. */
  readonly collapsed: boolean;
}

const Head = memo(({ run, detail, curves, collapsed }: HeadProps) => {
  const mine = curves.runs.get(run.id);
  const of = (metric: string) => mine?.series.get(metric)?.value.filter((value) => value !== null) ?? [];
  const figures = FIGURES.map((each) => ({ ...each, values: of(each.metric) }))
    .filter(({ values }) => values.length > 0)
    .slice(0, 7);
  const seconds = run.started === null || run.updated === null ? null : (run.updated - run.started) / 1000;
  const left =
    run.state === "live" && seconds !== null && run.total_steps !== null && run.step > 2
      ? (seconds / run.step) * (run.total_steps - run.step)
      : null;
  return (
    <header class="run-head">
      <div class="title">
        <StateDot state={run.state} />
        <h1>{run.name}</h1>
        <StateTag state={run.state} />
        {collapsed ? (
          <a class="tag bad" href={hashOf(["run", run.id, "health"])}>
            <Glyph name="alarm" /> completions have collapsed
          </a>
        ) : null}
        {run.sweep === null ? null : (
          <a class="tag" href={hashOf(["sweep", run.sweep])}>
            <Glyph name="left" /> sweep
          </a>
        )}
        {run.recipe === null ? null : <span class="tag">{run.recipe}</span>}
        {run.model === null ? null : <span class="tag">{run.model}</span>}
        {run.tags.map((tag) => (
          <span class="tag" key={tag}>
            {tag}
          </span>
        ))}
        {detail === null || detail.header.length === 0 ? null : (
          <details class="formula">
            <summary>What it computes</summary>
            <pre class="panel">{detail.header.join("\n")}</pre>
          </details>
        )}
      </div>
      <dl class="figures">
        <Figure wide name="step" value={<Progress run={run} />}>
          <small title={run.started === null ? undefined : `started ${dateTime(run.started)}`}>
            {seconds === null ? "" : duration(seconds)}
            {left === null ? "" : `, about ${duration(left)} left`}
          </small>
        </Figure>
        {figures.map(({ name, metric, good, values }) => {
          const [first, last] = [values[0]!, values.at(-1)!];
          const rise = last - first;
          const judged = good === 0 || rise === 0 ? "" : rise * good > 0 ? "good" : "bad";
          return (
            <Figure key={metric} name={name} value={figure(last)} help={metric}>
              <small class={judged} title="since the first step">
                {values.length < 2 ? "" : signed(rise)}
              </small>
            </Figure>
          );
        })}
      </dl>
    </header>
  );
});

/** Which runs are shown beside this one. */
function Comparison({ id, shown }: { id: string; shown: readonly Shown[] }) {
  const list = useStore(runList);
  const [open, setOpen] = useState(false);
  const [text, setText] = useState("");
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (open) field.current?.focus();
  }, [open]);
  const others = shown.slice(1).map(({ run }) => run.id);
  const set = (next: readonly string[]) => setQuery({ vs: next.join(",") }, true);
  const found = (list?.runs ?? [])
    .filter((run) => run.id !== id && run.name.toLowerCase().includes(text.toLowerCase()))
    .slice(0, 60);
  return (
    <div class="comparison">
      {shown.length > 1 ? (
        <a
          class="link"
          title="runs that differ in their seed alone together, with mean and spread"
          href={hashOf(["grouped"], { runs: [id, ...others].join(",") })}
        >
          Group by seed
        </a>
      ) : null}
      {shown.length > 1 ? (
        <div class="chips">
          {shown.map(({ run, colour }, index) => (
            <span class="tag chip" key={run.id}>
              <Swatch colour={colour} />
              {run.name}
              {index === 0 ? null : (
                <button
                  type="button"
                  class="link"
                  aria-label={`without ${run.name}`}
                  onClick={() => set(others.filter((each) => each !== run.id))}
                >
                  <Glyph name="close" />
                </button>
              )}
            </span>
          ))}
        </div>
      ) : null}
      <span class="popover">
        <button type="button" aria-expanded={open} onClick={() => setOpen(!open)}>
          <Glyph name="plus" /> Compare with
        </button>
        {open ? (
          // biome-ignore lint/a11y/noStaticElementInteractions: Escape closes it from any of its fields
          <div
            class="panel menu"
            onKeyDown={(event) => {
              if (event.key === "Escape") setOpen(false);
            }}
          >
            <input
              type="search"
              placeholder="Name of a run"
              aria-label="Name of a run"
              ref={field}
              value={text}
              onInput={(event) => setText(event.currentTarget.value)}
            />
            <ul>
              {found.map((run) => (
                <li key={run.id}>
                  <label>
                    <input
                      type="checkbox"
                      checked={others.includes(run.id)}
                      onChange={(event) =>
                        set(
                          event.currentTarget.checked
                            ? [...others, run.id]
                            : others.filter((each) => each !== run.id),
                        )
                      }
                    />
                    <StateDot state={run.state} />
                    <span>{run.name}</span>
                    <b class="num">{figure(run.last[mainMetric(run) ?? ""])}</b>
                  </label>
                </li>
              ))}
            </ul>
            {found.length === 0 ? <p class="muted">no other run</p> : null}
            <button type="button" onClick={() => setOpen(false)}>
              Done
            </button>
          </div>
        ) : null}
      </span>
    </div>
  );
}
