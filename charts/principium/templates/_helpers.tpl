{{/* Name of every object: the release's name where it already contains the chart's. */}}
{{- define "principium.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "principium.operator.name" -}}{{ include "principium.fullname" . }}-operator{{- end -}}
{{- define "principium.devicePlugin.name" -}}{{ include "principium.fullname" . }}-device-plugin{{- end -}}

{{- define "principium.operator.serviceAccount" -}}
{{- .Values.operator.serviceAccount.name | default (include "principium.operator.name" .) -}}
{{- end -}}
{{- define "principium.devicePlugin.serviceAccount" -}}
{{- .Values.devicePlugin.serviceAccount.name | default (include "principium.devicePlugin.name" .) -}}
{{- end -}}

{{/* Labels that never change, for selectors. Called with (dict "root" $ "component" "operator"). */}}
{{- define "principium.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of a pod: no versions, so that a new chart alone restarts nothing. Called like principium.selectorLabels. */}}
{{- define "principium.podLabels" -}}
{{ include "principium.selectorLabels" . }}
app.kubernetes.io/part-of: principium
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* All labels of an object of a component. Called like principium.selectorLabels. */}}
{{- define "principium.labels" -}}
{{ include "principium.selectorLabels" . }}
app.kubernetes.io/part-of: principium
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Image reference. Called with (dict "root" $ "image" .Values.operator.image). */}}
{{- define "principium.image" -}}
{{- $registry := .image.registry | default .root.Values.image.registry -}}
{{- $repository := .image.repository -}}
{{- if $registry -}}{{- $repository = printf "%s/%s" $registry $repository -}}{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The device plugin's configuration file: the values that have a name of their own, and what else is configured. */}}
{{- define "principium.devicePlugin.config" -}}
{{- with .Values.devicePlugin -}}
{{- $own := dict "injection" .injection "interval" .interval "withholdTemperature" .temperature.withhold "restoreTemperature" .temperature.restore "dwell" .temperature.dwell -}}
{{- toYaml (merge (dict) $own .config) -}}
{{- end -}}
{{- end -}}

{{/* Whether a workload must compute on its GPUs to be Ready: as set, else false with simulated hardware. */}}
{{- define "principium.requireAcceleration" -}}
{{- if kindIs "bool" .Values.operator.requireAcceleration -}}
{{- .Values.operator.requireAcceleration -}}
{{- else -}}
{{- not .Values.simulation.enabled -}}
{{- end -}}
{{- end -}}

{{/* Tag of Ollama's own image, under whatever name it is mirrored: the version that principium is tested with. */}}
{{- define "principium.ollamaTag" -}}0.17.4{{- end -}}

{{/* Default image of OllamaPools. With simulated GPUs it is one of ours, and has the tag of the others. */}}
{{- define "principium.ollamaImage" -}}
{{- $image := .Values.ollama.image -}}
{{- if .Values.simulation.enabled -}}
{{- $image = merge (dict "repository" ($image.repository | default "principium-ollama")) $image -}}
{{- else -}}
{{- $image = merge (dict "tag" ($image.tag | default (include "principium.ollamaTag" .))) $image -}}
{{- if not $image.repository -}}
{{- $image = merge (dict "registry" ($image.registry | default "docker.io") "repository" "ollama/ollama") $image -}}
{{- end -}}
{{- end -}}
{{- include "principium.image" (dict "root" . "image" $image) -}}
{{- end -}}

{{/* Annotations of a component's pods. Called with (dict "root" $ "own" .Values.operator.podAnnotations). */}}
{{- define "principium.podAnnotations" -}}
{{- with merge (dict) .own .root.Values.podAnnotations }}
{{- toYaml . }}
{{- end }}
{{- end -}}
