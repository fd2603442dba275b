import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import uPlot from "uplot";
import { figure } from "./format.ts";
import { Swatch } from "./parts.tsx";
import { smoothed } from "./series.ts";
import { colour, seriesColour, THEME_CHANGED } from "./theme.ts";

/** One curve of a chart. Points of different lines need not share their x. */
export interface Line {
  readonly label: string;
  /** Which of the colours that tell series apart. */
  readonly colour: number;
  readonly x: readonly number[];
  readonly y: readonly (number | null)[];
  /** Evaluations are few: points joined by dashes. */
  readonly style: "line" | "points";
  /** Edges of a band around the line. */
  readonly band?: Band;
}

export interface Band {
  readonly low: readonly (number | null)[];
  readonly high: readonly (number | null)[];
}

export interface ChartProps {
  readonly lines: readonly Line[];
  /** Text of an x value under the cursor and on the axis. */
  readonly xText: (x: number) => string;
  readonly xName: string;
  readonly height: number;
  readonly log?: boolean;
  /** 0 none … 0.99: exponential moving average, corrected for its start; what was measured stays as a shadow. */
  readonly smooth?: number;
  /** Range of x that all charts of a view share; null: everything. */
  readonly zoom?: readonly [number, number] | null;
  readonly onZoom?: (range: readonly [number, number] | null) => void;
  /** Least and greatest value that the vertical axis has room for, whatever the lines have; null: theirs. */
  readonly extent?: readonly [number, number] | null;
  /** Charts with the same name move their cursors together. */
  readonly sync?: string;
  /** Lines lie on top of one another, the areas filled. */
  readonly stacked?: boolean;
  readonly label: string;
}

interface Drawn {
  readonly label: string;
  readonly colour: number;
  readonly kind: "line" | "points" | "shadow" | "edge";
  /** Line of the chart that it is the curve of; null: a band's edge, or the shadow of a smoothed curve. */
  readonly line: number | null;
}

interface Plan {
  readonly data: uPlot.AlignedData;
  readonly drawn: readonly Drawn[];
  readonly bands: readonly [number, number][];
}

/** What uPlot is given: common x for all lines, and a series for each thing that is drawn. */
function plan(props: ChartProps): Plan {
  const { lines, log = false, smooth = 0, stacked = false } = props;
  const drawn: Drawn[] = [];
  const bands: [number, number][] = [];
  const tables: uPlot.AlignedData[] = [];
  const add = (x: readonly number[], y: readonly (number | null)[], as: Drawn) => {
    drawn.push(as);
    // A logarithm has no place for zero and below.
    tables.push([x as number[], log ? y.map((v) => (v !== null && v > 0 ? v : null)) : (y as number[])]);
    return drawn.length;
  };
  let below: readonly (number | null)[] | null = null;
  lines.forEach((line, index) => {
    const { x, y, label, colour } = line;
    if (stacked) {
      const under: readonly (number | null)[] | null = below;
      const top = y.map((value, i) => (value ?? 0) + (under?.[i] ?? 0));
      const at = add(x, top, { label, colour, kind: "line", line: index });
      if (under !== null) bands.push([at, at - 1]);
      below = top;
      return;
    }
    if (line.band !== undefined) {
      const upper = add(x, line.band.high, { label, colour, kind: "edge", line: null });
      bands.push([upper, add(x, line.band.low, { label, colour, kind: "edge", line: null })]);
    }
    const soft = smooth > 0 && line.style === "line" && y.length > 2;
    if (soft) add(x, y, { label, colour, kind: "shadow", line: null });
    add(x, soft ? smoothed(y, smooth) : y, { label, colour, kind: line.style, line: index });
  });
  return { data: tables.length === 0 ? [[]] : uPlot.join(tables), drawn, bands };
}

function faded(hex: string, alpha: number): string {
  return `${hex}${Math.round(alpha * 255)
    .toString(16)
    .padStart(2, "0")}`;
}

function options(props: ChartProps, made: Plan, width: number, live: Live): uPlot.Options {
  const ink = colour("muted");
  const grid = { stroke: colour("grid"), width: 1 };
  const ticks = { stroke: colour("grid"), width: 1, size: 4 };
  const font = `11px ${colour("sans")}`;
  const series: uPlot.Series[] = made.drawn.map(({ label, colour: index, kind }) => {
    const stroke = seriesColour(index);
    if (kind === "edge") return { label, stroke: "transparent", points: { show: false }, spanGaps: true };
    if (kind === "shadow")
      return { label, stroke: faded(stroke, 0.25), width: 1, points: { show: false }, spanGaps: true };
    const points = kind === "points" ? { show: true, size: 5, fill: stroke } : { show: lone(made, label) };
    return {
      label,
      stroke,
      width: 1.6,
      spanGaps: true,
      ...(kind === "points" ? { dash: [4, 4] } : {}),
      ...(props.stacked ? { fill: faded(stroke, 0.3) } : {}),
      points,
    };
  });
  return {
    width,
    height: props.height,
    legend: { show: false },
    padding: [8, 16, 0, 0],
    scales: {
      x: { time: false, range: (_, min, max) => xRange(live.props.zoom ?? null, min, max) },
      y: props.log
        ? { distr: 3, log: 10 }
        : { range: (_, min, max) => yRange(...(live.props.extent ?? [min, max]), props.stacked) },
    },
    axes: [
      {
        ...{ stroke: ink, grid: { show: false }, ticks, font, size: 26, space: 64 },
        values: (_, splits) => splits.map((value) => live.props.xText(value)),
      },
      {
        ...{ stroke: ink, grid, ticks: { show: false }, font, size: yAxisSize, gap: 6, space: 34 },
        values: (_, splits) => splits.map((value) => (value === null ? "" : figure(value))),
      },
    ],
    series: [{}, ...series],
    bands: made.bands.map(([above, below]) => ({
      series: [above, below] as [number, number],
      fill: faded(seriesColour(made.drawn[above - 1]!.colour), props.stacked ? 0.3 : 0.12),
    })),
    cursor: {
      y: false,
      drag: { x: props.onZoom !== undefined, y: false, setScale: false },
      points: {
        size: (_, series) => (made.drawn[series - 1]?.line === null ? 0 : 7),
        width: 1.5,
        fill: colour("panel"),
      },
      ...(props.sync === undefined
        ? {}
        : {
            sync: {
              key: props.sync,
              setSeries: false,
              scales: ["x", null],
              // A drag zooms through the shared range, not by repeating the mouse in every chart.
              filters: { pub: (type: string) => type === "mousemove" || type === "mouseleave" },
            },
          }),
    },
    hooks: {
      setCursor: [(u) => live.legend(u.cursor.idx ?? null)],
      setSelect: [
        (u) => {
          if (u.select.width < 4) return;
          const from = u.posToVal(u.select.left, "x");
          const to = u.posToVal(u.select.left + u.select.width, "x");
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          live.props.onZoom?.([from, to]);
        },
      ],
    },
  };
}

/** A line of one point is invisible unless the point is drawn. */
function lone(made: Plan, label: string): boolean {
  const at = made.drawn.findIndex((each) => each.label === label && each.line !== null);
  return (made.data[at + 1] ?? []).filter((value) => value !== null && value !== undefined).length < 2;
}

function xRange(zoom: readonly [number, number] | null, min: number | null, max: number | null) {
  if (zoom !== null) return [zoom[0], zoom[1]] as [number, number];
  if (min === null || max === null) return [0, 1] as [number, number];
  return (min === max ? [min - 0.5, max + 0.5] : [min, max]) as [number, number];
}

function yRange(min: number | null, max: number | null, fromZero = false): [number, number] {
  if (min === null || max === null) return [0, 1];
  const low = fromZero ? Math.min(0, min) : min;
  if (low === max) {
    const room = Math.abs(max) * 0.1 || 0.5;
    return [low - room, max + room];
  }
  const room = (max - low) * 0.06;
  return [fromZero ? low : low - room, max + room];
}

/** As wide as the longest label. */
function yAxisSize(_: uPlot, values: string[] | null): number {
  const longest = Math.max(3, ...(values ?? []).map((text) => text.length));
  return 14 + 6.4 * longest;
}

/** What a mounted plot reads anew whenever it needs it. */
interface Live {
  props: ChartProps;
  legend: (index: number | null) => void;
}

/** Changes that need a new plot; all others go into the one there is, without flicker. */
const shapeOf = (props: ChartProps, made: Plan): string =>
  JSON.stringify([made.drawn, made.bands, props.log, props.stacked, props.sync, props.height, props.label]);

export function Chart(props: ChartProps) {
  const host = useRef<HTMLDivElement>(null);
  const values = useRef<(HTMLElement | null)[]>([]);
  const where = useRef<HTMLElement>(null);
  const made = useMemo(() => plan(props), [props.lines, props.log, props.smooth, props.stacked]);
  const shape = shapeOf(props, made);
  const state = useRef<{ plot: uPlot | null; made: Plan; visible: boolean; stale: boolean; live: Live }>({
    plot: null,
    made,
    visible: false,
    stale: false,
    live: { props, legend: () => {} },
  }).current;
  state.made = made;
  state.live.props = props;
  state.live.legend = (index) => legend(index);

  function legend(index: number | null): void {
    const { lines, xName, xText } = state.live.props;
    const x = index === null ? undefined : state.made.data[0][index];
    if (where.current) where.current.textContent = x === undefined ? "" : `${xName} ${xText(x)}`;
    for (const [at, line] of lines.entries()) {
      const element = values.current[at];
      if (element) element.textContent = figure(measuredAt(line, x ?? Number.POSITIVE_INFINITY));
    }
  }

  useLayoutEffect(() => {
    const element = host.current!;
    const build = () => {
      state.plot?.destroy();
      const { made: now, live } = state;
      state.plot = new uPlot(options(live.props, now, element.clientWidth, live), now.data, element);
      // The plot's own double click resets scales by itself; here the range is shared.
      state.plot.over.addEventListener("dblclick", () => live.props.onZoom?.(null));
      live.legend(null);
    };
    const seen = new IntersectionObserver(
      (entries) => {
        state.visible = entries.at(-1)!.isIntersecting;
        if (!state.visible) return;
        if (state.plot === null) build();
        else if (state.stale) update(state.plot);
        state.stale = false;
      },
      { rootMargin: "300px" },
    );
    seen.observe(element);
    const sized = new ResizeObserver(() => {
      const width = element.clientWidth;
      if (state.plot && width > 0 && width !== state.plot.width)
        state.plot.setSize({ width, height: state.live.props.height });
    });
    sized.observe(element);
    const themed = () => {
      if (state.plot) build();
    };
    addEventListener(THEME_CHANGED, themed);
    return () => {
      removeEventListener(THEME_CHANGED, themed);
      seen.disconnect();
      sized.disconnect();
      state.plot?.destroy();
      state.plot = null;
    };
  }, [shape]);

  function update(plot: uPlot): void {
    plot.setData(state.made.data);
    legend(plot.cursor.idx ?? null);
  }

  useEffect(() => {
    if (state.plot === null) return;
    if (state.visible) update(state.plot);
    else state.stale = true;
  }, [made, props.zoom?.[0], props.zoom?.[1], props.xText]);

  return (
    <div class="chart">
      <div class="legend">
        {props.lines.map((line, index) => (
          <span class="key" key={`${line.label}-${index}`}>
            <Swatch colour={line.colour} style={line.style} />
            <span class="name" title={line.label}>
              {line.label}
            </span>
            <b
              ref={(element) => {
                values.current[index] = element;
              }}
            />
          </span>
        ))}
        <span class="where" ref={where} />
      </div>
      {/* Keyboard and screen readers get the last values of the legend; the picture itself is for the eye. */}
      <div
        class="plot"
        ref={host}
        role="img"
        aria-label={props.label}
        style={{ minHeight: `${props.height}px` }}
      />
    </div>
  );
}

/** The last measured value up to a place: not the smoothed one. */
function measuredAt({ x, y }: Line, place: number): number | null {
  let [low, high] = [0, x.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle]! <= place) low = middle + 1;
    else high = middle;
  }
  let at = low - 1;
  while (at >= 0 && y[at] === null) at -= 1;
  return y[at] ?? null;
}

/** A small curve without axes, for tables. */
export function Sparkline({ values, label }: { values: readonly number[]; label: string }) {
  const clean = values.filter(Number.isFinite);
  if (clean.length < 2) return <span class="spark empty" />;
  const [low, high] = [Math.min(...clean), Math.max(...clean)];
  const y = (value: number) => (high === low ? 11 : 20 - (18 * (value - low)) / (high - low));
  const x = (index: number) => (100 * index) / (clean.length - 1);
  const path = clean.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  return (
    <svg class="spark" viewBox="0 0 100 22" preserveAspectRatio="none" role="img" aria-label={label}>
      <polygon points={`0,22 ${path} 100,22`} />
      <polyline points={path} />
    </svg>
  );
}
