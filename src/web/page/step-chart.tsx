import type { ComponentChildren } from "preact";
import { Chart, type ChartProps } from "./chart.tsx";
import { stepText } from "./format.ts";

interface FrameProps {
  readonly title: string;
  /** Told of the title under the pointer. */
  readonly help?: string;
  /** What the chart is found by. */
  readonly id?: string;
  readonly kind?: string;
  /** Beside the title. */
  readonly caption?: ComponentChildren;
  readonly children: ComponentChildren;
}

/** The panel around a chart. */
export function ChartFrame({ title, help, id, kind = "", caption, children }: FrameProps) {
  return (
    <figure class={`panel chart-panel ${kind}`.trim()} data-chart={id}>
      <figcaption>
        <h3 title={help}>{title}</h3>
        {caption}
      </figcaption>
      {children}
    </figure>
  );
}

type StepChartProps = Omit<FrameProps, "children"> &
  Omit<ChartProps, "xText" | "xName"> & {
    /** Below the chart. */
    readonly children?: ComponentChildren;
  };

/** A panel with curves over the steps of a run. */
export function StepChart({ title, help, id, kind, caption, children, ...chart }: StepChartProps) {
  return (
    <ChartFrame title={title} help={help} id={id} kind={kind} caption={caption}>
      <Chart {...chart} xText={stepText} xName="step" />
      {children}
    </ChartFrame>
  );
}
