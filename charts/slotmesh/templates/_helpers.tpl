{{/*
Labels. Each takes (dict "root" $ "component" "agent"). The names of the release's objects are fixed: a
cluster has one slotmesh, as it has one set of CRDs.
*/}}

{{/* Labels that tell a component's pods; they must not change in an upgrade. */}}
{{- define "slotmesh.selector" -}}
app.kubernetes.io/name: slotmesh
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "slotmesh.labels" -}}
{{ include "slotmesh.selector" . }}
app.kubernetes.io/part-of: slotmesh
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* The image of a component. */}}
{{- define "slotmesh.image" -}}
{{ .root.Values.image.repository }}/{{ .component }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "slotmesh.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
