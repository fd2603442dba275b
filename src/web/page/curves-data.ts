import { useEffect, useMemo, useState } from "preact/hooks";
import type { MetricRow, MetricRows, MetricsAnswer, RunMetrics } from "../api.ts";
import { ask, queryOf, runPath } from "./client.ts";
import { follow, onMetrics } from "./live.ts";
import type { Series } from "./series.ts";

/** All metrics of a run, as far as they are here. Rows that come are appended in place, and `Curves` made anew. */
export interface RunCurves {
  readonly id: string;
  generation: string;
  rows: number;
  readonly series: Map<string, Series>;
}

/** At most so many points a curve at first: more than a chart has pixels. */
const POINTS = 1500;
/** Milliseconds between two drawings while rows come in. */
const PACE = 200;

function curvesOf(id: string, answer: RunMetrics): RunCurves {
  const series = new Map(
    Object.entries(answer.series).map(([name, from]): [string, Series] => [
      name,
      {
        step: [...from.step],
        time: [...from.time],
        examples: from.step.map((_, at) => from.examples?.[at] ?? null),
        value: [...from.value],
        thinned: from.of > from.value.length,
      },
    ]),
  );
  return { id, generation: answer.generation, rows: answer.rows, series };
}

function append(curves: RunCurves, rows: readonly MetricRow[]): void {
  for (const { step, time, examples, metrics } of rows) {
    for (const [name, value] of Object.entries(metrics)) {
      let series = curves.series.get(name);
      if (series === undefined) {
        series = { step: [], time: [], examples: [], value: [], thinned: false };
        curves.series.set(name, series);
      }
      series.step.push(step);
      series.time.push(time);
      series.examples.push(examples ?? null);
      series.value.push(value);
    }
  }
  curves.rows += rows.length;
}

export interface Curves {
  readonly runs: ReadonlyMap<string, RunCurves>;
  readonly error: Error | null;
  readonly loading: boolean;
}

/** The curves of these runs, followed while they are shown. */
export function useCurves(ids: readonly string[]): Curves {
  const [state, set] = useState<Curves>({ runs: new Map(), error: null, loading: true });
  const wanted = ids.join(",");
  useEffect(() => {
    let over = false;
    let timer: ReturnType<typeof setTimeout> | null = null;
    const runs = new Map<string, RunCurves>();
    const busy = new Set<string>();
    const show = (error: Error | null = null) => set({ runs: new Map(runs), error, loading: false });
    const showSoon = () => {
      timer ??= setTimeout(() => {
        timer = null;
        show();
      }, PACE);
    };

    async function load(which: readonly string[]): Promise<void> {
      try {
        const answer = await ask<MetricsAnswer>(
          `/api/metrics${queryOf({ runs: which.join(","), points: POINTS })}`,
        );
        if (over) return;
        let error: Error | null = null;
        for (const [id, metrics] of Object.entries(answer.runs))
          if ("error" in metrics) error = new Error(metrics.error);
          else runs.set(id, curvesOf(id, metrics));
        show(error);
      } catch (error) {
        if (!over) show(error as Error);
      }
    }

    function take(message: MetricRows): void {
      const mine = runs.get(message.run);
      if (mine === undefined || busy.has(message.run)) return;
      if (message.generation !== mine.generation) {
        void load([message.run]);
        return;
      }
      // Rows in between were missed, or more are there than one message holds.
      if (message.from > mine.rows || message.total > message.from + message.rows.length) {
        void catchUp(mine);
        return;
      }
      const fresh = message.rows.slice(mine.rows - message.from);
      if (fresh.length === 0) return;
      append(mine, fresh);
      showSoon();
    }

    async function catchUp(mine: RunCurves): Promise<void> {
      busy.add(mine.id);
      try {
        for (;;) {
          const path = runPath(mine.id, `/rows${queryOf({ generation: mine.generation, from: mine.rows })}`);
          const answer = await ask<MetricRows>(path);
          if (over) return;
          if (answer.generation !== mine.generation) return void load([mine.id]);
          append(mine, answer.rows.slice(mine.rows - answer.from));
          if (answer.rows.length === 0 || mine.rows >= answer.total) break;
        }
        show();
      } catch (error) {
        if (!over) show(error as Error);
      } finally {
        busy.delete(mine.id);
      }
    }

    const which = wanted === "" ? [] : wanted.split(",");
    const quiet = onMetrics(take);
    const unfollow = follow(which);
    // Runs that were there before stay on the screen until the new ones are here as well.
    void load(which);
    return () => {
      over = true;
      if (timer !== null) clearTimeout(timer);
      quiet();
      unfollow();
    };
  }, [wanted]);
  return state;
}

/** `curves` with all values between two steps, where they were thinned; null: as they are. */
export function useFineCurves(curves: Curves, steps: readonly [number, number] | null): Curves {
  const [fine, setFine] = useState<{ readonly key: string; readonly answer: MetricsAnswer } | null>(null);
  const thinned = [...curves.runs.values()].filter((run) =>
    [...run.series.values()].some((series) => series.thinned),
  );
  const range = steps === null ? null : { x_min: Math.floor(steps[0]), x_max: Math.ceil(steps[1]) };
  const path =
    range === null || thinned.length === 0
      ? null
      : `/api/metrics${queryOf({ runs: thinned.map(({ id }) => id).join(","), points: POINTS, ...range })}`;
  useEffect(() => {
    if (path === null) return;
    const stop = new AbortController();
    // Without it the thinned curves stay, which say why if there is a reason.
    ask<MetricsAnswer>(path, { signal: stop.signal }).then(
      (answer) => setFine({ key: path, answer }),
      () => {},
    );
    return () => stop.abort();
  }, [path]);
  return useMemo(() => {
    if (range === null || fine === null || fine.key !== path) return curves;
    const runs = new Map(curves.runs);
    for (const [id, metrics] of Object.entries(fine.answer.runs)) {
      const whole = curves.runs.get(id);
      if (whole !== undefined && !("error" in metrics)) runs.set(id, spliced(whole, metrics, range));
    }
    return { ...curves, runs };
  }, [curves, fine, path]);
}

function spliced(whole: RunCurves, fine: RunMetrics, range: { x_min: number; x_max: number }): RunCurves {
  const series = new Map(
    [...whole.series].map(([name, each]): [string, Series] => {
      const inside = fine.series[name];
      if (inside === undefined || inside.step.length === 0) return [name, each];
      const from = each.step.findIndex((step) => step >= range.x_min);
      // Rows that came after the answer are behind its last step.
      const last = inside.step.at(-1)!;
      const behind = each.step.findIndex((step) => step > last);
      const join = <T>(of: readonly T[], middle: readonly T[]): T[] => [
        ...of.slice(0, from < 0 ? of.length : from),
        ...middle,
        ...(behind < 0 ? [] : of.slice(behind)),
      ];
      return [
        name,
        {
          step: join(each.step, inside.step),
          time: join(each.time, inside.time),
          examples: join(
            each.examples,
            inside.step.map((_, at) => inside.examples?.[at] ?? null),
          ),
          value: join(each.value, inside.value),
          thinned: each.thinned,
        },
      ];
    }),
  );
  return { ...whole, series };
}
