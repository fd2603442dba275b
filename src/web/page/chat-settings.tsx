import { type ChatState, type Column, type Settings, setScales, setSettings } from "./chat-state.ts";
import { figure } from "./format.ts";
import { Segments } from "./parts.tsx";

type NumberName = Exclude<keyof Settings, "system" | "thinking">;

interface Control {
  readonly name: NumberName;
  readonly label: string;
  readonly help: string;
  readonly min: number;
  readonly max: number;
  readonly step: number;
  readonly slider?: number;
}

const CONTROLS: readonly Control[] = [
  {
    name: "temperature",
    label: "Temperature",
    help: "0: the likeliest token",
    min: 0,
    max: 100,
    step: 0.05,
    slider: 2,
  },
  {
    name: "top_p",
    label: "Top p",
    help: "keep the likeliest tokens of this share; 1 = all",
    min: 0.01,
    max: 1,
    step: 0.01,
    slider: 1,
  },
  {
    name: "top_k",
    label: "Top k",
    help: "keep so many likeliest tokens; 0 = all",
    min: 0,
    max: 4294967295,
    step: 1,
  },
  {
    name: "min_p",
    label: "Min p",
    help: "drop tokens below this share of the likeliest; 0 = none",
    min: 0,
    max: 1,
    step: 0.01,
  },
  { name: "max_new_tokens", label: "Longest reply", help: "in tokens", min: 1, max: 1048576, step: 1 },
  { name: "seed", label: "Seed", help: "same seed, same reply", min: 0, max: 4294967295, step: 1 },
];

export function ChatSettings({ state }: { state: ChatState }) {
  const { settings, columns } = state;
  const thinks = columns.some(({ info }) => info?.thinking);
  return (
    <section class="panel pad settings" aria-label="settings">
      <label class="system">
        <span>System prompt</span>
        <textarea
          rows={3}
          value={settings.system}
          onInput={(event) => setSettings({ system: event.currentTarget.value })}
        />
      </label>
      {thinks ? (
        <div class="field">
          <span>Thinking</span>
          <Segments
            label="thinking"
            choices={[
              { id: "auto", name: "Auto", help: "as the model's template is made" },
              { id: "on", name: "On" },
              { id: "off", name: "Off" },
            ]}
            value={settings.thinking === null ? "auto" : settings.thinking ? "on" : "off"}
            onChange={(value) => setSettings({ thinking: value === "auto" ? null : value === "on" })}
          />
        </div>
      ) : null}
      {CONTROLS.map((control) => (
        <NumberControl key={control.name} control={control} value={settings[control.name]} />
      ))}
    </section>
  );
}

function NumberControl({ control, value }: { control: Control; value: number }) {
  const { name, label, help, min, max, step, slider } = control;
  const take = (event: { currentTarget: HTMLInputElement }) => {
    const next = event.currentTarget.valueAsNumber;
    if (Number.isFinite(next) && next >= min && next <= max) setSettings({ [name]: next });
  };
  return (
    <label class="field" title={help}>
      <span>{label}</span>
      {slider === undefined ? null : (
        <input
          type="range"
          aria-hidden="true"
          tabIndex={-1}
          {...{ min, max: slider, step, value }}
          onInput={take}
        />
      )}
      <input type="number" {...{ min, max, step, value }} onChange={take} />
    </label>
  );
}

/** Weights of a DualLoRA model's adapters. */
export function Scales({ column, busy }: { column: Column; busy: boolean }) {
  const scales = column.scales!;
  const slider = (name: "retain" | "forget") => (
    <label class="field">
      <span>{name}</span>
      <input
        type="range"
        {...{ min: 0, max: 2, step: 0.05, value: scales[name], disabled: busy }}
        onInput={(event) => setScales(column.key, { ...scales, [name]: event.currentTarget.valueAsNumber })}
      />
      <output class="num">{figure(scales[name], 3)}</output>
    </label>
  );
  return (
    <div class="scales">
      {slider("retain")}
      {slider("forget")}
    </div>
  );
}
